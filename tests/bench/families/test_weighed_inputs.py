"""Llama 4: the router's score multiplies what the one chosen expert takes in, so what an expert gives counts once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from bench.applying.apply import apply
from bench.applying.in_memory import realised
from bench.calibration.calibrate import calibrate
from bench.checkpoint.checkpoint import Checkpoint
from bench.models.load import load_model
from bench.probing.masked_model import MaskedModel
from bench.recovery.objectives import ExpertDistillation, next_token_loss
from bench.recovery.pairs import layer_pairs
from bench.recovery.write import read_plan_document
from bench.text.corpus import Corpus
from methods.framework.errors import CheckpointError, PlanError, RefusedError
from methods.framework.layer_plan import LayerPlan
from methods.framework.plan import Plan
from methods.framework.stats import Stats
from methods.hc_smoe import HCSMoE
from methods.mone import MoNE
from tests.support.tiny import tiny_checkpoint, tiny_tokens

WINDOWS = tiny_tokens(2, 12).tolist()
LAYER = 2


@pytest.fixture(scope="module")
def source() -> Checkpoint:
    return Checkpoint.open(tiny_checkpoint("llama4"))


def block_inputs(source: Checkpoint) -> torch.Tensor:
    """Return what the MoE block of a layer takes in, by a hook on transformers' model, (T, D)."""
    model, taken = load_model(source.path), []
    block = model.get_submodule(source.family.mlp_modules(LAYER)[1])
    block.register_forward_pre_hook(lambda _, args: taken.append(args[0][0].detach()))
    with torch.no_grad():
        for window in WINDOWS:
            model(torch.tensor([window]))
    return torch.cat(taken)


def outputs(source: Checkpoint) -> torch.Tensor:
    """Return what each expert makes of each token's weighed input, from the formula, (T, E, D) in float64."""
    entries = source.inventory.layers[LAYER]
    x_TD = block_inputs(source).double()
    router_ED = source.read(next(entries.with_role("router.weight"))).double()
    scores_TE = (x_TD @ router_ED.T).sigmoid()
    found = []
    for expert in range(8):
        gate_FD, up_FD, down_DF = (
            source.read(entry).double()
            for entry in entries.with_role("expert.gate", "expert.up", "expert.down")
            if entry.expert == expert
        )
        taken_TD = x_TD * scores_TE[:, expert : expert + 1]
        found.append((F.silu(taken_TD @ gate_FD.T) * (taken_TD @ up_FD.T)) @ down_DF.T)
    return torch.stack(found, dim=1)


def test_what_experts_would_give_is_measured_on_inputs_weighed_for_each(source: Checkpoint) -> None:
    found = calibrate(source, Corpus.of(WINDOWS), {"token_gram", "token_logits", "removal_loss"})
    expected_TED = outputs(source)
    gram_TEE = expected_TED @ expected_TED.mT
    np.testing.assert_allclose(found.layer("token_gram", LAYER), gram_TEE.numpy(), rtol=1e-3, atol=1e-4)
    best_T2 = torch.from_numpy(found.layer("token_logits", LAYER)).topk(2, dim=1).indices
    first_TD, second_TD = (expected_TED[torch.arange(24), best_T2[:, place]] for place in (0, 1))
    squares_TE = F.one_hot(best_T2[:, 0], 8) * (first_TD - second_TD).square().sum(1, keepdim=True)
    losses_E = squares_TE.unflatten(0, (2, 12)).sum(1).sqrt().sum(0)
    np.testing.assert_allclose(found.layer("removal_loss", LAYER), losses_E.numpy(), rtol=1e-4, atol=1e-6)


def test_gradients_of_masks_are_those_of_outputs_that_are_scaled(source: Checkpoint) -> None:
    ones = np.ones(8)
    masked = MaskedModel(source, [[WINDOWS]], torch.device("cpu"), torch.float64)
    value, gradient = masked.gradient({LAYER: ones}, 0, 0.0)
    model = load_model(source.path, torch.float64)
    with torch.no_grad():
        logits = torch.stack([model(torch.tensor([window])).logits[0] for window in WINDOWS])
    ids = torch.tensor(WINDOWS)
    assert value == pytest.approx(float(F.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())), rel=1e-6)
    expert = int(np.abs(gradient[LAYER]).argmax())
    step = np.eye(8)[expert] * 1e-2
    above, below = (masked.gradient({LAYER: mask}, 0, 0.0)[0] for mask in (ones + step, ones - step))
    assert gradient[LAYER][expert] == pytest.approx((above - below) / 2e-2, rel=1e-3)


def test_distillation_compares_experts_on_what_each_takes_in(source: Checkpoint, tmp_path: Path) -> None:
    plan = Plan.of(
        source.inventory, [LayerPlan(), LayerPlan(), LayerPlan(experts=(1, 2, 5, 6), channels=((0, 3, 7),) * 4)]
    )
    written = Checkpoint.open(apply(source, plan, tmp_path / "out"))
    student, teacher = load_model(written.path), load_model(source.path)
    pairs, seen, ids = (
        layer_pairs(student, written, teacher, source, read_plan_document(written)),
        [],
        torch.tensor(WINDOWS),
    )
    small, large = (model.model.layers[LAYER].feed_forward.experts for model in (student, teacher))
    handle = small.register_forward_pre_hook(lambda _, args: seen.append(args[0].detach()))
    with torch.no_grad():
        language = float(next_token_loss(student(ids, use_cache=False).logits, ids))
        handle.remove()
        expected = 0.0
        for place, (origin, rows_TD) in enumerate(zip((1, 2, 5, 6), seen[0].unflatten(0, (4, 24)), strict=True)):
            errors = []
            for state in rows_TD[(rows_TD != 0).any(dim=1)]:
                alone, whole = torch.zeros(4, len(state)), torch.zeros(8, len(state))
                alone[place], whole[origin] = state, state
                errors.append(float((small(alone)[place] - large(whole)[origin]).square().mean()))
            expected += float(np.mean(errors)) if errors else 0.0
    assert expected > 1e-6
    found = ExpertDistillation(student, pairs, 1e3)(ids)
    assert float(found.detach()) == pytest.approx(language + 1e3 * expected, rel=1e-5)


def test_layers_with_experts_are_listed_once_decoder_layers_have_gone(source: Checkpoint, tmp_path: Path) -> None:
    deeper = Checkpoint.open(
        tiny_checkpoint("llama4", num_hidden_layers=5, moe_layers=None, interleave_moe_layer_step=2)
    )
    assert deeper.inventory.moe_layers == (1, 3)
    plan = Plan.of(deeper.inventory, [LayerPlan(drop="block" if i == 2 else "none") for i in range(5)])
    written = Checkpoint.open(apply(deeper, plan, tmp_path / "out"))
    inner = written.config["text_config"]
    assert inner["moe_layers"] == [1, 2] and inner["no_rope_layers"] == [1, 0, 0, 1]
    model, tokens = load_model(deeper.path), tiny_tokens(2, 16, seed=1)
    with torch.no_grad(), realised(model, deeper.inventory, plan):
        assert (model(tokens).logits - load_model(written.path)(tokens).logits).abs().max() <= 1e-5


def test_rows_cannot_lead_elsewhere_and_tokens_take_one_expert(source: Checkpoint) -> None:
    mapped = LayerPlan(experts=tuple(range(7)), constants=(7,), router="map")
    with pytest.raises(PlanError, match="multiplies what an expert takes in"):
        Plan.of(source.inventory, [mapped, LayerPlan(), LayerPlan()])
    with pytest.raises(RefusedError, match=r"multiplies what one expert takes in$"):
        MoNE().plan(source.inventory, Stats({}, 0))
    assert "set router to slice" in (HCSMoE().refuse(source.inventory) or "")
    assert HCSMoE(router="slice").refuse(source.inventory) is None
    config = dict(source.config)
    config["text_config"] = {**config["text_config"], "num_experts_per_tok": 2}
    with pytest.raises(CheckpointError, match="only one expert a token"):
        source.family.check(config)
