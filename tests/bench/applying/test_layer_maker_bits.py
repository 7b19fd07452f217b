"""Experts in few bits: one set of values on disk, in memory and in the library of the format; AWQ changes nothing else.

A scale of the experts' inputs reaches the norm before them, the router, and the shared experts; what those compute stays the
same.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
import torch
from compressed_tensors.compressors.pack_quantized.base import PackedQuantizationCompressor
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
from torch import Tensor

from bench.applying.apply import apply
from bench.applying.computed import expert_entries
from bench.applying.in_memory import realised
from bench.applying.layer_maker import LayerMaker
from bench.checkpoint.checkpoint import Checkpoint
from bench.experts.whole import PART_NAMES, stored_expert
from bench.models.load import load_model
from methods.framework.inside import Quantisation
from methods.framework.inventory import EXPERT_ROLES
from methods.framework.layer_plan import LayerPlan, Merge
from methods.framework.plan import Plan
from methods.framework.stats import Stats
from methods.kernels.awq import channel_scale
from methods.kernels.merging import ExpertMatrices
from methods.kernels.quantisation import dequantised, round_to_nearest
from tests.support.inside_slowly import EXPERTS, HIDDEN, RARE, TOKENS, UNSEEN, WIDTH, drawn_moments, moment_slowly
from tests.support.masking import logits
from tests.support.tiny import FAMILIES, tiny_model, tiny_tokens
from tests.support.tiny_sources import tiny_source

KERNELS = ("rtn", "gptq", "awq")
PAIRS = tuple(Merge(into=e, members=pair, weights=(0.5, 0.5)) for e, pair in ((0, (0, 3)), (6, (6, 7))))
SELECTIONS: dict[str, dict[str, Any]] = {
    "all": {},
    "pruned": {"experts": (1, UNSEEN, RARE, 6)},
    "averaged rows": {"experts": (0, 1, RARE, 6), "merges": PAIRS, "router": "mean"},
    "mapped": {"experts": (0, 1, RARE, 6), "merges": PAIRS, "router": "map"},
}
AWQ = Quantisation(bits=4, group=16, kernel="awq")
_FOLDER = TemporaryDirectory(prefix="few-bits-")


@cache
def source_of(family: str, dtype: torch.dtype = torch.float32) -> tuple[Checkpoint, Stats]:
    """Return a tiny checkpoint whose norms are no ones, and drawn moments of it."""
    model = tiny_model(family)
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.copy_(0.5 + torch.rand(parameter.shape, generator=draw))
    folder = Path(_FOLDER.name) / f"{family}-{dtype}"
    model.to(dtype).save_pretrained(folder)
    checkpoint = Checkpoint.open(folder)
    return checkpoint, drawn_moments(checkpoint.inventory)


def everywhere(checkpoint: Checkpoint, layer: LayerPlan) -> Plan:
    return Plan.of(
        checkpoint.inventory, [layer if old.mlp == "moe" else LayerPlan() for old in checkpoint.inventory.layers]
    )


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("family", FAMILIES)
def test_one_set_of_values(family: str, kernel: str, tmp_path: Path) -> None:
    """What is written, what the model computes with, and what the library of the format reads: bit for bit."""
    source, moments = source_of(family, torch.bfloat16)
    rule = Quantisation(bits=4 if kernel != "rtn" else 8, group=8, kernel=kernel)
    out = Checkpoint.open(apply(source, everywhere(source, LayerPlan(bits=rule)), tmp_path / "out", moments=moments))
    model = load_model(out.path)
    scheme = QuantizationScheme(
        targets=["Linear"], weights=QuantizationArgs(num_bits=rule.bits, strategy="group", group_size=rule.group)
    )
    for index in out.inventory.moe_layers:
        experts = model.model.layers[index].mlp.experts
        for expert in range(EXPERTS):
            entries = {e.role: e for e in out.inventory.layers[index].tensors if e.expert == expert}
            loaded = (*experts.gate_up_proj[expert].chunk(2), experts.down_proj[expert])
            for role, whole, held in zip(EXPERT_ROLES, stored_expert(out, index, expert), loaded, strict=True):
                tensors = {name: out.read(entries[f"{role}.{part}"]) for part, name in PART_NAMES.items()}
                library = PackedQuantizationCompressor.decompress(tensors, scheme)["weight"]
                assert library.dtype == torch.bfloat16
                assert torch.equal(library.float(), whole) and torch.equal(held, whole)
        before = stored_expert(source, index, 0)
        assert not torch.equal(before.gate_FD, stored_expert(out, index, 0).gate_FD)


def outputs_of(path: Path, inputs_TD: Tensor) -> list[dict[str, Tensor]]:
    """Return what each MoE layer makes of ``inputs_TD``, before its norm: routing, shared and routed outputs."""
    found = []
    for layer in load_model(path).model.layers:
        if not hasattr(layer.mlp, "gate"):
            continue
        with torch.no_grad():
            x_TD = layer.post_attention_layernorm(inputs_TD)
            scores, weights, chosen = layer.mlp.gate(x_TD)
            own = {"scores": scores, "weights": weights, "chosen": chosen}
            own["routed"] = layer.mlp.experts(x_TD, chosen, weights)
            own["everything"] = layer.mlp(x_TD.unsqueeze(0))[0]
            for name in ("shared_expert", "shared_experts", "shared_expert_gate"):
                if (module := getattr(layer.mlp, name, None)) is not None:
                    own[name] = module(x_TD)
        found.append(own)
    return found


@pytest.mark.parametrize("selection", SELECTIONS)
@pytest.mark.parametrize("family", FAMILIES)
def test_awq_changes_neither_routing_nor_shared_experts(family: str, selection: str, tmp_path: Path) -> None:
    source, moments = source_of(family)
    chosen = SELECTIONS[selection]
    plain = apply(source, everywhere(source, LayerPlan(**chosen)), tmp_path / "plain", moments=moments)
    fine = AWQ.model_copy(update={"bits": 8})
    out = apply(source, everywhere(source, LayerPlan(**chosen, bits=fine)), tmp_path / "out", moments=moments)
    inputs_TD = torch.randn(64, HIDDEN, generator=torch.Generator().manual_seed(2))
    shared = 0
    for before, after in zip(outputs_of(plain, inputs_TD), outputs_of(out, inputs_TD), strict=True):
        assert torch.equal(before["chosen"], after["chosen"])
        for name in set(before) - {"chosen", "routed", "everything"}:
            torch.testing.assert_close(after[name], before[name], rtol=1e-5, atol=1e-5)
            shared += name.startswith("shared")
        # Experts undo the scale too: what is left is the rounding to 8 bits.
        for name in ("routed", "everything"):
            error = float((after[name] - before[name]).norm() / before[name].norm())
            assert 0 < error < 0.02, f"{name}: {error}"
    assert bool(shared) == (family in ("qwen2_moe", "deepseek_v2", "deepseek_v3"))
    layers = zip(load_model(plain).model.layers, load_model(out).model.layers, strict=True)
    norms = [[layer.post_attention_layernorm.weight.detach() for layer in both] for both in layers]
    assert max(float((one / other).max()) for one, other in norms) > 1.1, "no scale: the comparison would be empty"


@pytest.mark.parametrize("selection", ["all", "averaged rows"])
def test_awq_rounds_the_experts_with_the_best_scales(selection: str, tmp_path: Path) -> None:
    source = tiny_source("mixtral", dtype=torch.float64, num_hidden_layers=1)
    moments = drawn_moments(source.inventory)
    plan = LayerPlan(**SELECTIONS[selection], bits=AWQ)
    out = Checkpoint.open(apply(source, everywhere(source, plan), tmp_path / "out", moments=moments))
    norm, divided = (c.read(next(c.inventory.layers[0].with_role("norm.mlp"))) for c in (source, out))
    scale_D = norm / divided
    merges = {merge.into: merge for merge in plan.merges}
    made, grams, tokens, channels = [], [], [], []
    for expert in plan.experts or range(EXPERTS):
        merge = merges.get(expert)
        members = merge.members if merge else (expert,)
        weights = merge.weights if merge else (1.0,)
        parts = [stored_expert(source, 0, member) for member in members]
        own = ExpertMatrices(*(sum(w * m for w, m in zip(weights, m3, strict=True)) for m3 in zip(*parts, strict=True)))
        orders = {member: np.arange(WIDTH) for member in members}
        tokens.append(sum(TOKENS[member] for member in members))
        moment = moment_slowly(moments, plan, 0, "input_gram", orders, expert)
        grams.append(torch.eye(HIDDEN) if moment is None else torch.from_numpy(moment))
        moment = moment_slowly(moments, plan, 0, "channel_gram", orders, expert)
        size_F = sum(TOKENS[m] * moments.layer("channel_magnitude", 0)[m] for m in members) / max(tokens[-1], 1)
        scale_F = torch.ones(WIDTH, dtype=torch.float64)
        if moment is not None:
            found_F = channel_scale(
                own.down_DF, torch.from_numpy(moment), torch.from_numpy(size_F), 4, 16, torch.float64
            )
            scale_F = found_F.double()
        channels.append(scale_F)
        made.append(ExpertMatrices(own.gate_FD, own.up_FD / scale_F[:, None], own.down_DF))
    assert max(float(scale_F.max()) for scale_F in channels) > 1.1
    magnitude_D = torch.from_numpy(moments.layer("input_magnitude", 0))
    losses, found = [], []
    for step in range(21):
        power_D = magnitude_D ** (step / 20)
        candidate_D = power_D / (power_D.max() * power_D.min()).sqrt()
        lost = 0.0
        for expert, gram_DD, count in zip(made, grams, tokens, strict=True):
            both = torch.cat([expert.gate_FD, expert.up_FD])
            nearest = dequantised(round_to_nearest(both * candidate_D, 4, 16, torch.float64), torch.float64)
            error = nearest / candidate_D - both
            lost += count * float((error @ gram_DD.double() * error).sum())
        losses.append(lost)
        found += [step] if torch.allclose(scale_D, candidate_D, rtol=1e-5, atol=0) else []
    assert len(found) == 1 and found[0] > 0, "the scale is one of the grid"
    # Weights that lie half a step from two codes fall to either side, so that neighbours in the grid may tie.
    assert losses[found[0]] < 1.005 * min(losses) < 0.98 * losses[0]
    for place, (expert, scale_F) in enumerate(zip(made, channels, strict=True)):
        wanted = (expert.gate_FD * scale_D, expert.up_FD * scale_D, expert.down_DF * scale_F)
        for matrix, found in zip(wanted, stored_expert(out, 0, place), strict=True):
            expected = dequantised(round_to_nearest(matrix, 4, 16, torch.float64), torch.float64)
            assert float(((found - expected).abs() > 1e-6).double().mean()) < 0.01
    if selection == "all":
        assert bool((channels[UNSEEN] == 1).all()), "an expert without tokens has no channels that stand out"


CELLS = [
    (kernel, selection, (torch.float32, torch.bfloat16)[(row + column) % 2])
    for row, kernel in enumerate(KERNELS)
    for column, selection in enumerate(SELECTIONS)
]
"""Every kernel on every selection, and both types with every kernel and on every selection."""


@pytest.mark.parametrize(("kernel", "selection", "dtype"), CELLS)
def test_what_runs_in_memory_is_what_is_written(
    kernel: str, selection: str, dtype: torch.dtype, tmp_path: Path
) -> None:
    source, moments = source_of("qwen2_moe", dtype)
    rule = Quantisation(bits=4, group=8, kernel=kernel)
    plan = everywhere(source, LayerPlan(**SELECTIONS[selection], bits=rule))
    written = load_model(apply(source, plan, tmp_path / "out", moments=moments))
    model = load_model(source.path)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    tokens = tiny_tokens(2, 12)
    plain = logits(model, tokens)
    with realised(model, source.inventory, plan, moments):
        inside = logits(model, tokens)
        kept = list(SELECTIONS[selection].get("experts", range(EXPERTS)))
        for ours, theirs in zip(model.model.layers, written.model.layers, strict=True):
            for name in ("gate_up_proj", "down_proj"):
                assert torch.equal(getattr(ours.mlp.experts, name)[kept], getattr(theirs.mlp.experts, name))
            assert torch.equal(ours.post_attention_layernorm.weight, theirs.post_attention_layernorm.weight)
            assert torch.equal(ours.mlp.shared_expert.up_proj.weight, theirs.mlp.shared_expert.up_proj.weight)
    assert (inside - plain).abs().max() > 1e-3, "the plan changes nothing: the comparison would be empty"
    torch.testing.assert_close(inside, logits(written, tokens), rtol=1e-5, atol=1e-5)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_a_layer_without_tokens_is_not_scaled(tmp_path: Path) -> None:
    source, moments = source_of("olmoe")
    empty = {name: tuple(np.zeros_like(value) for value in values) for name, values in moments.values.items()}
    awq, rtn = (Quantisation(bits=4, group=16, kernel=kernel) for kernel in ("awq", "rtn"))
    one = load_model(apply(source, everywhere(source, LayerPlan(bits=awq)), tmp_path / "one", moments=Stats(empty)))
    other = load_model(apply(source, everywhere(source, LayerPlan(bits=rtn)), tmp_path / "other"))
    assert all(torch.equal(tensor, other.state_dict()[name]) for name, tensor in one.state_dict().items())


def test_the_search_for_scales_reads_each_expert_twice_and_no_more(tmp_path: Path) -> None:
    """Once for the scale that all experts share, and once to round it."""
    source, moments = source_of("mixtral")
    plan = everywhere(source, LayerPlan(bits=AWQ))
    entries = expert_entries(source.inventory, 0)
    read: list[int] = []

    def noted(expert: int) -> ExpertMatrices:
        read.append(expert)
        return ExpertMatrices(*(source.read(entry) for entry in entries[expert]))

    norm = source.read(next(source.inventory.layers[0].with_role("norm.mlp")))
    maker = LayerMaker(plan.layers[0], 0, source.inventory, noted, moments, [torch.float32] * 3, lambda: norm)
    for expert in range(EXPERTS):
        maker.stored(expert)
        maker.stored(expert)
    seen = [expert for expert in range(EXPERTS) if TOKENS[expert]]
    assert sorted(read) == sorted([*seen, *range(EXPERTS)])
