"""Merges, maps and constants: written, realised in memory, and run slowly token by token, they are one model."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, PreTrainedModel

from bench.applying import computed as recipes
from bench.applying.apply import PLAN_FILE, apply
from bench.applying.in_memory import realised
from bench.checkpoint.checkpoint import Checkpoint
from bench.experts.mapped import ExpertMap
from bench.models.load import load_model
from methods.framework.cost import cost
from methods.framework.errors import CheckpointError, PlanError, StatsError
from methods.framework.inventory import CONSTANT_ROLE
from methods.framework.layer_plan import LayerPlan, Merge
from methods.framework.plan import Plan
from methods.framework.stats import Stats
from methods.framework.transfer import result
from tests.support.groupings import MIXES, grouping, moments_of
from tests.support.masking import logits, mask
from tests.support.tiny import FAMILIES, tiny_model, tiny_tokens
from tests.support.tiny_sources import tiny_source

TOLERANCE = 1e-5
PAIRS = Merge(into=0, members=(0, 3), weights=(0.5, 0.5)), Merge(into=2, members=(1, 2), weights=(0.25, 0.75))
MAPPED = LayerPlan(experts=(0, 2, 6), merges=PAIRS, constants=(4, 5, 7), router="map")


def written_tensors(folder: Path) -> dict[str, torch.Tensor]:
    return {k: v for path in sorted(folder.glob("*.safetensors")) for k, v in load_file(path).items()}


CELLS = [(family, mix, (row + column) % 2) for row, family in enumerate(FAMILIES) for column, mix in enumerate(MIXES)]
"""Every mix in every family, and both draws of every mix and in every family."""


@pytest.mark.parametrize(("family", "mix", "seed"), CELLS)
def test_written_and_realised_are_the_slow_reference(family: str, mix: str, seed: int, tmp_path: Path) -> None:
    source, tokens = tiny_source(family), tiny_tokens(2, 12)
    inventory = source.inventory
    model = load_model(source.path)
    before = logits(model, tokens)
    bits = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    plan, moments = grouping(inventory, mix, seed), moments_of(inventory, seed)
    out = apply(source, plan, tmp_path / "out", moments=moments)
    assert Checkpoint.open(out).inventory == result(plan, inventory)
    expected = logits(mask(tiny_model(family), plan, moments), tokens)
    written = logits(load_model(out), tokens)
    with realised(model, inventory, plan, moments):
        inside = logits(model, tokens)
    assert (expected - before).abs().max() > 1e-2, "the plan changes nothing: the comparison would be empty"
    assert (written - expected).abs().max() < TOLERANCE
    assert (inside - expected).abs().max() < TOLERANCE
    assert (written - inside).abs().max() < TOLERANCE
    assert torch.equal(logits(model, tokens), before)
    assert all(torch.equal(tensor, bits[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("family", FAMILIES)
def test_merged_values_are_rounded_to_the_dtype_of_the_file_in_memory_too(family: str, tmp_path: Path) -> None:
    source = tiny_source(family, dtype=torch.bfloat16)
    tokens = tiny_tokens(2, 12)
    models = {dtype: load_model(source.path, dtype) for dtype in (torch.float32, torch.bfloat16)}
    for mix in MIXES:
        plan, moments = grouping(source.inventory, mix, 5), moments_of(source.inventory, 5)
        out = apply(source, plan, tmp_path / mix, moments=moments)
        for dtype, model in models.items():
            with realised(model, source.inventory, plan, moments):
                inside = logits(model, tokens)
            assert (inside - logits(load_model(out, dtype), tokens)).abs().max() < TOLERANCE


@pytest.mark.parametrize("family", FAMILIES)
def test_every_experts_implementation_gives_the_same(family: str, tmp_path: Path) -> None:
    source = tiny_source(family)
    plan, moments = grouping(source.inventory, "constants", 3), moments_of(source.inventory)
    out = load_model(apply(source, plan, tmp_path / "out", moments=moments))
    expected = logits(mask(tiny_model(family), plan, moments), tiny_tokens(2, 12))
    model = load_model(source.path)
    for implementation in ("eager", "grouped_mm", "batched_mm"):
        out.set_experts_implementation(implementation)
        block = out.model.layers[2].mlp
        assert block.experts.config._experts_implementation == implementation
        assert (logits(out, tiny_tokens(2, 12)) - expected).abs().max() < TOLERANCE
        model.set_experts_implementation(implementation)
        with realised(model, source.inventory, plan, moments):
            assert (logits(model, tiny_tokens(2, 12)) - expected).abs().max() < TOLERANCE


def test_rows_of_one_token_that_lead_to_one_expert_add_up() -> None:
    places, experts = (
        (0, 1, 0, 2, 3, 3),
        2,
    )  # rows 0 and 2 lead to expert 0, row 3 to a constant, rows 4 and 5 to another
    vectors = torch.randn(2, 3, generator=torch.Generator().manual_seed(0))
    hidden = torch.randn(5, 3, generator=torch.Generator().manual_seed(1))
    chosen = torch.tensor([[0, 2], [0, 1], [2, 3], [3, 4], [5, 4]])
    weights = torch.tensor([[0.3, 0.5], [0.2, 0.9], [0.4, 0.6], [0.7, 0.1], [0.2, 0.4]])
    scale = (10.0, 100.0)

    def stock(hidden_TD: torch.Tensor, index_TK: torch.Tensor, weights_TK: torch.Tensor) -> torch.Tensor:
        """Two experts that multiply by ten and by a hundred; index 2 is skipped."""
        out = torch.zeros_like(hidden_TD)
        for token in range(len(hidden_TD)):
            for place in range(index_TK.shape[1]):
                if index_TK[token, place] < experts:
                    out[token] += weights_TK[token, place] * scale[index_TK[token, place]] * hidden_TD[token]
        return out

    found = ExpertMap(places, experts)(stock, hidden, chosen, weights, vectors)
    expected = torch.stack(
        [
            8.0 * hidden[0],
            2.0 * hidden[1] + 90.0 * hidden[1],
            4.0 * hidden[2] + 0.6 * vectors[0],
            0.7 * vectors[0] + 0.1 * vectors[1],
            0.6 * vectors[1],
        ]
    )
    assert (found - expected).abs().max() < 1e-5


@pytest.mark.parametrize("family", FAMILIES)
def test_merged_experts_are_stored_once_and_the_file_proves_it(family: str, tmp_path: Path) -> None:
    source = tiny_source(family, dtype=torch.bfloat16)
    plan = Plan.of(source.inventory, [MAPPED if n.mlp == "moe" else LayerPlan() for n in source.inventory.layers])
    moments = moments_of(source.inventory)
    out = apply(source, plan, tmp_path / "out", moments=moments)
    price = cost(plan, source.inventory)
    size = sum(path.stat().st_size for path in out.glob("*.safetensors"))
    header = int.from_bytes((out / "model.safetensors").read_bytes()[:8], "little")
    assert size == price.bytes + 8 + header
    tensors = written_tensors(out)
    assert price.parameters == sum(tensor.numel() for tensor in tensors.values())
    kept, moe = 3, len(source.inventory.moe_layers)
    down = next(source.inventory.layers[2].with_role("expert.down"))
    assert price.routed_parameters == moe * kept * 3 * down.numel
    for index in source.inventory.moe_layers:
        layer = Checkpoint.open(out).inventory.layers[index]
        router, vectors = (next(layer.with_role(role)) for role in ("router.weight", CONSTANT_ROLE))
        names = [entry.name for entry in layer.tensors]
        assert names.index(vectors.name) == names.index(router.name) + 1
        assert tensors[router.name].shape[0] == 8 and (layer.experts, layer.rows, layer.constants) == (3, 8, 3)
        rows = moments.layer("routed_output_mean", index)[[4, 5, 7]]
        assert torch.equal(tensors[vectors.name], torch.from_numpy(rows).bfloat16())


@pytest.mark.parametrize("family", FAMILIES)
def test_fused_and_sharded_sources_and_results_hold_the_same(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_model(family)
    model.save_pretrained(tmp_path / "classic")
    model.save_pretrained(tmp_path / "fused", save_original_format=False)
    model.save_pretrained(tmp_path / "sharded", max_shard_size="100KB")
    computed = []
    stock = recipes.merged
    monkeypatch.setattr(recipes, "merged", lambda merge, members: computed.append(merge) or stock(merge, members))
    found = []
    for layout, shard_bytes in (("classic", 1 << 30), ("fused", 1 << 30), ("sharded", 10_000)):
        source = Checkpoint.open(tmp_path / layout)
        plan, moments = grouping(source.inventory, "constants", 1), moments_of(source.inventory)
        computed.clear()
        out = apply(source, plan, tmp_path / f"{layout}-out", moments=moments, shard_bytes=shard_bytes)
        assert computed == [merge for layer in plan.layers for merge in layer.merges], "each expert is computed once"
        found.append(written_tensors(out))
    assert len(list((tmp_path / "sharded-out").glob("*.safetensors"))) > 5
    for other in found[1:]:
        assert found[0].keys() == other.keys()
        assert all(torch.equal(found[0][name], other[name]) for name in other)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_mapped_checkpoint_generates_saves_and_is_compressed_no_further(family: str, tmp_path: Path) -> None:
    source = tiny_source(family)
    plan, moments = grouping(source.inventory, "constants", 2), moments_of(source.inventory)
    out = apply(source, plan, tmp_path / "out", moments=moments)
    model, prompt = load_model(out), tiny_tokens(2, 6)
    assert type(model).__name__.startswith("Moebench")
    options = {"max_new_tokens": 5, "do_sample": False, "eos_token_id": None}
    cached = model.generate(prompt, **options)
    assert torch.equal(cached, model.generate(prompt, use_cache=False, **options))
    twin = copy.deepcopy(model)
    with torch.no_grad():
        model.model.layers[2].mlp.constant_experts.zero_()
    assert torch.equal(logits(twin, prompt), logits(load_model(out), prompt))
    assert (logits(model, prompt) - logits(twin, prompt)).abs().max() > 1e-3
    twin.save_pretrained(tmp_path / "saved")
    saved = Checkpoint.open(tmp_path / "saved")
    assert saved.inventory == Checkpoint.open(out).inventory
    assert torch.equal(logits(load_model(tmp_path / "saved"), prompt), logits(twin, prompt))
    with pytest.raises(PlanError, match="router rows lead to one expert already"):
        Plan.of(saved.inventory, [LayerPlan(), LayerPlan(experts=(0, 1)), LayerPlan()])
    further = Plan.of(saved.inventory, [LayerPlan(drop="block"), LayerPlan(), LayerPlan(top_k=1)])
    shorter = apply(saved, further, tmp_path / "further")
    assert Checkpoint.open(shorter).inventory == result(further, saved.inventory)
    with realised(twin, saved.inventory, further):
        assert (logits(twin, prompt) - logits(load_model(shorter), prompt)).abs().max() < TOLERANCE
    same = written_tensors(apply(saved, Plan.identity(saved.inventory), tmp_path / "same"))
    original = written_tensors(tmp_path / "saved")
    assert all(torch.equal(same[name], original[name]) for name in original) and same.keys() == original.keys()


@pytest.mark.parametrize("family", FAMILIES)
def test_stock_loaders_refuse_a_mapped_checkpoint(family: str, tmp_path: Path) -> None:
    source = tiny_source(family)
    plan = Plan.of(source.inventory, [LayerPlan(), MAPPED, MAPPED])
    out = apply(source, plan, tmp_path / "out", moments=moments_of(source.inventory))
    config = json.loads((out / "config.json").read_text())
    stock = source.family.architecture
    assert config["architectures"] == [f"Moebench{stock}"]
    place = [0, 1, 1, 0, 3, 4, 2, 5]
    for layer in ("1", "2"):
        assert config["per_layer_config"][layer] == {"expert_map": place, "constant_experts": 3}
    with pytest.raises(RuntimeError, match=r"mismatch|per-layer attribute"):
        AutoModelForCausalLM.from_pretrained(out)


def test_without_moments_nothing_is_written_and_other_moments_are_other_work(tmp_path: Path) -> None:
    source = tiny_source("mixtral")
    model = load_model(source.path)
    plan = Plan.of(source.inventory, [MAPPED] * 3)
    wrong = Stats({"routed_output_mean": (np.zeros((8, 3)),) * 3})
    endless = Stats({"routed_output_mean": (np.full((8, 64), np.nan),) * 3})
    for moments, words in (
        (None, "none were passed; measure 'routed_output_mean'"),
        (Stats({}), "those at hand lack"),
        (wrong, r"shape \(8, 3\), but this model needs \(8, 64\)"),
        (endless, "not finite"),
    ):
        with pytest.raises(StatsError, match=words):
            apply(source, plan, tmp_path / "new" / "out", moments=moments)
        before = {name: tensor._version for name, tensor in model.state_dict().items()}
        with pytest.raises(StatsError, match=words), realised(model, source.inventory, plan, moments):
            pass
        assert before == {name: tensor._version for name, tensor in model.state_dict().items()}
    assert not (tmp_path / "new").exists()
    moments = moments_of(source.inventory)
    out = apply(source, plan, tmp_path / "out", moments=moments)
    digest = json.loads((out / PLAN_FILE).read_text())["provenance"]["moments"]
    assert len(digest) == 64
    stamp = (out / "model.safetensors").stat().st_mtime_ns
    unused = moments.layer("routed_output_mean", 0).copy()
    unused[0] += 1.0  # of an expert that is merged: its mean is not written
    alike = Stats({"routed_output_mean": (unused, *moments.values["routed_output_mean"][1:])})
    assert apply(source, plan, out, moments=alike) == out and (out / "model.safetensors").stat().st_mtime_ns == stamp
    with pytest.raises(CheckpointError, match="holds something else"):
        apply(source, plan, out, moments=moments_of(source.inventory, seed=1))
    plain = apply(source, Plan.of(source.inventory, [LayerPlan(experts=(0, 1))] * 3), tmp_path / "plain")
    assert "moments" not in json.loads((plain / PLAN_FILE).read_text())["provenance"]


def test_merging_is_undone_after_an_exception_bit_for_bit(tmp_path: Path) -> None:
    source = tiny_source("olmoe")
    model = load_model(source.path)
    plan, moments = grouping(source.inventory, "constants", 4), moments_of(source.inventory)
    bits = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    places = {name: tensor.data_ptr() for name, tensor in model.state_dict().items()}
    fields = {name: sorted(vars(module)) for name, module in model.named_modules()}
    flags = [layer.mlp.experts._is_expert_parallel for layer in model.model.layers]
    with pytest.raises(ZeroDivisionError), realised(model, source.inventory, plan, moments):
        changed = [name for name, tensor in model.state_dict().items() if not torch.equal(tensor, bits[name])]
        assert changed and all("experts" in name for name in changed)
        raise ZeroDivisionError
    assert all(torch.equal(tensor, bits[name]) for name, tensor in model.state_dict().items())
    assert places == {name: tensor.data_ptr() for name, tensor in model.state_dict().items()}
    assert fields == {name: sorted(vars(module)) for name, module in model.named_modules()}
    assert flags == [layer.mlp.experts._is_expert_parallel for layer in model.model.layers]


def duplicated(family: str, folder: Path) -> tuple[PreTrainedModel, Checkpoint]:
    """Return a model whose experts 2i and 2i + 1 are the same, router rows and correction bias included."""
    model = tiny_model(family)
    with torch.no_grad():
        for layer in model.model.layers:
            if not hasattr(layer.mlp, "experts"):
                continue
            gate, experts = layer.mlp.gate, layer.mlp.experts
            for tensor in (gate.weight, experts.gate_up_proj, experts.down_proj):
                tensor[1::2] = tensor[::2]
            if hasattr(gate, "e_score_correction_bias"):
                gate.e_score_correction_bias[1::2] = gate.e_score_correction_bias[::2]
    model.save_pretrained(folder)
    return load_model(folder), Checkpoint.open(folder)


@pytest.mark.parametrize("family", FAMILIES)
def test_planted_duplicates_merge_without_loss_under_a_map_and_not_with_averaged_rows(
    family: str, tmp_path: Path
) -> None:
    """Weights are 1/2 and rows stay, so every product is the same number and only the order of a sum may differ.

    With ``batched_mm`` each row of a token is computed by itself, and the logits are equal to the bit; the other
    implementations batch tokens by expert, hence by other batches, whose matrix products may round in another order.
    """
    model, source = duplicated(family, tmp_path / "source")
    tokens = tiny_tokens()
    halves = tuple(Merge(into=e, members=(e, e + 1), weights=(0.5, 0.5)) for e in (0, 2, 4, 6))
    for router in ("map", "mean"):
        merged = LayerPlan(experts=(0, 2, 4, 6), merges=halves, router=router)
        layers = [merged if layer.mlp == "moe" else LayerPlan() for layer in source.inventory.layers]
        plan = Plan.of(source.inventory, layers)
        out = load_model(apply(source, plan, tmp_path / router))
        difference = (logits(out, tokens) - logits(model, tokens)).abs().max()
        if router == "mean":
            assert difference > 1e-3
            continue
        assert difference < TOLERANCE
        out.set_experts_implementation("batched_mm")
        model.set_experts_implementation("batched_mm")
        assert torch.equal(logits(out, tokens), logits(model, tokens))


@pytest.mark.parametrize("kernel", ["mean", "aligned"])
def test_a_group_that_keeps_one_member_copies_its_bits(kernel: str, tmp_path: Path) -> None:
    """A weight of 1 with all others 0 under a map: the rows lead to one of the source's experts as it is."""
    source = tiny_source("deepseek_v3", dtype=torch.bfloat16)
    one = Merge(into=5, members=(1, 2, 5), weights=(0.0, 1.0, 0.0), kernel=kernel)
    if kernel == "aligned":
        one = one.model_copy(update={"weights": (0.0, 0.0, 1.0)})
    plan = LayerPlan(experts=(0, 3, 4, 5, 6, 7), merges=(one,), router="map")
    out = apply(source, Plan.of(source.inventory, [LayerPlan(), plan, plan]), tmp_path / "out")
    kept, result_of = (2 if kernel == "mean" else 5), Checkpoint.open(out)
    for layer, written in zip(source.inventory.layers[1:], result_of.inventory.layers[1:], strict=True):
        for role in ("expert.gate", "expert.up", "expert.down"):
            before = source.read(next(entry for entry in layer.with_role(role) if entry.expert == kept))
            after = result_of.read(next(entry for entry in written.with_role(role) if entry.expert == 3))
            assert torch.equal(before.view(torch.int16), after.view(torch.int16))
