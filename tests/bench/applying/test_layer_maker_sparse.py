"""Sparse experts: what is written is the slow reference, what runs in memory is what is written, and it can be undone."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from bench.applying import layer_maker as inside
from bench.applying.apply import PLAN_FILE, apply
from bench.applying.in_memory import realised
from bench.applying.layer_maker import LayerMaker
from bench.applying.written_moments import moments_digest
from bench.checkpoint.checkpoint import Checkpoint
from bench.laws.cases import case
from bench.models.load import load_model
from methods.framework.cost import cost, zeros
from methods.framework.errors import CheckpointError, StatsError
from methods.framework.inside import SPARSITY_MOMENTS, Sparsity
from methods.framework.inventory import EXPERT_ROLES, Inventory, TensorEntry
from methods.framework.layer_plan import LayerPlan, Merge
from methods.framework.plan import Plan
from methods.framework.stats import Stats
from methods.framework.transfer import InsideExpert, transfers
from methods.kernels.merging import ExpertMatrices, align, merged, permuted
from tests.support.inside_slowly import (
    EXPERTS,
    HIDDEN,
    RARE,
    UNSEEN,
    WIDTH,
    drawn_moments,
    expert_slowly,
    moment_slowly,
)
from tests.support.masking import logits
from tests.support.sparsity_reference import Array, masked_slowly, sparsegpt_slowly
from tests.support.tiny import FAMILIES, tiny_tokens
from tests.support.tiny_sources import tiny_source

KERNELS = ("magnitude", "wanda", "moe_pruner", "sparsegpt")
MEAN = Merge(into=0, members=(0, 3), weights=(0.5, 0.5))
ALIGNED = Merge(into=4, members=(UNSEEN, 4, 6), weights=(0.2, 0.5, 0.3), kernel="aligned")
SHAPES: dict[str, dict[str, Any]] = {
    "all": {},
    "pruned": {"experts": (1, UNSEEN, RARE, 6)},
    "merged": {"experts": (0, 1, 4, RARE), "merges": (MEAN, ALIGNED), "router": "slice"},
    "mapped": {"experts": (0, 1, 4, RARE, 7), "merges": (MEAN, ALIGNED), "router": "map"},
}


def sparse(inventory: Inventory, rule: Sparsity, shape: str = "all") -> Plan:
    layer = LayerPlan(sparsity=rule, **SHAPES[shape])
    return Plan.of(inventory, [layer if old.mlp == "moe" else LayerPlan() for old in inventory.layers])


def slow_expert(checkpoint: Checkpoint, recipe: InsideExpert, moments: Stats) -> list[Array]:
    """Return the three matrices that the definitions give, in float64."""
    expert, rule = recipe.expert, recipe.plan.sparsity
    assert expert is not None and rule is not None
    made, orders = expert_slowly(checkpoint, recipe.plan, recipe.layer, expert)
    out = []
    for role, weight in zip(EXPERT_ROLES, made, strict=True):
        down = role == "expert.down"
        names = [name for name in rule.moments if name != "routed_tokens" and ("channel" in name) == down]
        known = [moment_slowly(moments, recipe.plan, recipe.layer, name, orders, expert) for name in names]
        if not known or known[0] is None:
            out.append(masked_slowly(weight, np.ones(weight.shape[1]), rule))
        elif rule.kernel == "sparsegpt":
            out.append(sparsegpt_slowly(weight, known[0], rule))
        else:
            out.append(masked_slowly(weight, np.sqrt(known[0]), rule))
    return out


def written_tensors(folder: Path) -> dict[str, torch.Tensor]:
    return {k: v for path in sorted(folder.glob("*.safetensors")) for k, v in load_file(path).items()}


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize(("family", "shape"), [("mixtral", "all"), ("qwen3_moe", "pruned"), ("olmoe", "mapped")])
def test_what_is_written_is_the_slow_reference(family: str, shape: str, kernel: str, tmp_path: Path) -> None:
    source = tiny_source(family, dtype=torch.float64, num_hidden_layers=1)
    inventory, moments = source.inventory, drawn_moments(source.inventory)
    plan = sparse(inventory, Sparsity(share=0.6, kernel=kernel), shape)
    out = apply(source, plan, tmp_path / "out", moments=moments)
    written = written_tensors(out)
    found, compared = 0, 0
    expected: dict[int, list[Array]] = {}
    for move in transfers(plan, inventory):
        if not isinstance(move.recipe, InsideExpert):
            continue
        if move.recipe.expert not in expected:
            expected[move.recipe.expert] = slow_expert(source, move.recipe, moments)
        matrix = written[move.target.name].numpy()
        slow = expected[move.recipe.expert][EXPERT_ROLES.index(move.source.role)]
        # Sums over members, and the factor of averaged Gram matrices, are rounded in float32.
        np.testing.assert_allclose(matrix, slow, atol=1e-5 if kernel == "sparsegpt" else 1e-12)
        found, compared = found + int((matrix == 0).sum()), compared + 1
    assert compared == 3 * len(plan.layers[0].experts or range(EXPERTS))
    assert found == zeros(plan, inventory) > 0
    assert cost(plan, inventory).bytes == sum(tensor.nbytes for tensor in written.values())


RULES = (
    (torch.float32, "unstructured", "sparsegpt"),
    (torch.bfloat16, "2:4", "wanda"),
    (torch.bfloat16, "4:8", "moe_pruner"),
)
CELLS = [
    (family, shape, RULES[(row + column) % len(RULES)])
    for row, family in enumerate(FAMILIES)
    for column, shape in enumerate(SHAPES)
]
"""Every shape in every family, and every rule with every shape and in every family."""


@pytest.mark.parametrize(("family", "shape", "rule"), CELLS)
def test_what_runs_in_memory_is_what_is_written_bit_for_bit(
    family: str, shape: str, rule: tuple[torch.dtype, Any, Any], tmp_path: Path
) -> None:
    dtype, pattern, kernel = rule
    source = tiny_source(family, dtype=dtype)
    inventory, moments = source.inventory, drawn_moments(source.inventory, seed=1)
    plan = sparse(inventory, Sparsity(share=0.5, pattern=pattern, kernel=kernel), shape)
    written = load_model(apply(source, plan, tmp_path / "out", moments=moments))
    model = load_model(source.path)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    plain = logits(model, tiny_tokens(2, 12))
    with realised(model, inventory, plan, moments):
        inside = logits(model, tiny_tokens(2, 12))
        for index, layer in enumerate(plan.layers):
            if layer.sparsity is None:
                continue
            kept = list(layer.experts or range(EXPERTS))
            for name in ("gate_up_proj", "down_proj"):
                resident = getattr(model.model.layers[index].mlp.experts, name)
                assert torch.equal(resident[kept], getattr(written.model.layers[index].mlp.experts, name))
                gone = [e for e in range(EXPERTS) if e not in kept]
                assert torch.equal(resident[gone], before[f"model.layers.{index}.mlp.experts.{name}"][gone])
    assert (inside - plain).abs().max() > 1e-3, "the plan changes nothing: the comparison would be empty"
    assert (inside - logits(written, tiny_tokens(2, 12))).abs().max() < 1e-5
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_everything_is_undone_after_an_exception_also_one_half_way(tmp_path: Path) -> None:
    source = tiny_source("qwen2_moe")
    model, moments = load_model(source.path), drawn_moments(source.inventory)
    plan = sparse(source.inventory, Sparsity(share=0.5, kernel="sparsegpt"), "merged")
    bits = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    places = {name: tensor.data_ptr() for name, tensor in model.state_dict().items()}
    with pytest.raises(ZeroDivisionError), realised(model, source.inventory, plan, moments):
        changed = [name for name, tensor in model.state_dict().items() if not torch.equal(tensor, bits[name])]
        assert changed and all("experts" in name for name in changed)
        raise ZeroDivisionError
    bad = moments.layer("channel_gram", 2).copy()
    bad[RARE, 0, 0] = np.nan  # the last expert of the last layer: found when all others are written
    broken = Stats({**moments.values, "channel_gram": (*moments.values["channel_gram"][:2], bad)})
    with pytest.raises(StatsError, match="not finite"), realised(model, source.inventory, plan, broken):
        raise AssertionError("never entered")
    assert all(torch.equal(tensor, bits[name]) for name, tensor in model.state_dict().items())
    assert places == {name: tensor.data_ptr() for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize("kernel", ["wanda", "moe_pruner", "sparsegpt"])
def test_without_its_moments_nothing_is_written_and_nothing_is_changed(kernel: str, tmp_path: Path) -> None:
    source = tiny_source("mixtral")
    plan = sparse(source.inventory, Sparsity(share=0.5, kernel=kernel))
    moments, names = drawn_moments(source.inventory), sorted(SPARSITY_MOMENTS[kernel])
    one = moments.only({names[1]})
    shape = Stats({name: tuple(v[..., :3] for v in values) for name, values in moments.values.items()})
    endless = {name: tuple(v.copy() for v in values) for name, values in moments.values.items()}
    endless[names[0]][1][3] = np.inf
    model = load_model(source.path)
    versions = {name: tensor._version for name, tensor in model.state_dict().items()}
    everything = ", ".join(map(repr, names))
    others = ", ".join(repr(name) for name in names if name != names[1])
    for passed, words in (
        (None, f"none were passed; measure {everything} on the source"),
        (one, f"those at hand lack {others}; measure {others} on"),
        (shape, "but this model needs"),
        (Stats(endless), f"'{names[0]}' of layer 1 holds values that are not finite"),
    ):
        with pytest.raises(StatsError, match=words):
            apply(source, plan, tmp_path / "new" / "out", moments=passed)
        with pytest.raises(StatsError, match=words), realised(model, source.inventory, plan, passed):
            pass
        if passed is None or kernel != "sparsegpt":
            assert versions == {name: tensor._version for name, tensor in model.state_dict().items()}
    assert not (tmp_path / "new").exists()


def test_magnitude_needs_no_moments_and_writes_none(tmp_path: Path) -> None:
    source = tiny_source("mixtral")
    out = apply(source, sparse(source.inventory, Sparsity(share=0.5)), tmp_path / "out")
    assert "moments" not in json.loads((out / PLAN_FILE).read_text())["provenance"]


@pytest.mark.parametrize("kernel", ["wanda", "sparsegpt"])
def test_other_moments_are_other_work_and_those_of_experts_that_go_do_not_count(kernel: str, tmp_path: Path) -> None:
    source = tiny_source("mixtral")
    plan = sparse(source.inventory, Sparsity(share=0.5, kernel=kernel), "merged")
    moments = drawn_moments(source.inventory)
    out = apply(source, plan, tmp_path / "out", moments=moments)
    stamp = (out / "model.safetensors").stat().st_mtime_ns
    name = max(SPARSITY_MOMENTS[kernel])
    for expert, counts in ((7, False), (3, True), (RARE, True)):  # gone; a member of a merge; stays
        other = moments.layer(name, 1).copy()
        other[expert] *= 2.0
        changed = Stats({**moments.values, name: (moments.layer(name, 0), other, moments.layer(name, 2))})
        if counts:
            with pytest.raises(CheckpointError, match="holds something else"):
                apply(source, plan, out, moments=changed)
        else:
            assert apply(source, plan, out, moments=changed) == out
    assert (out / "model.safetensors").stat().st_mtime_ns == stamp


def test_gram_matrices_are_hashed_one_at_a_time() -> None:
    inventory = case("mixtral").inventory  # 16 experts
    layers = [LayerPlan(sparsity=Sparsity(share=0.5, kernel="sparsegpt"))] * len(inventory.layers)
    plan = Plan.of(inventory, layers)
    gram = np.eye(HIDDEN, dtype=np.float32)
    values = {"input_gram": np.tile(gram, (16, 1, 1)), "channel_gram": np.tile(gram[:WIDTH, :WIDTH], (16, 1, 1))}
    values["routed_tokens"] = np.ones(16)
    moments = Stats({name: (value,) * len(inventory.layers) for name, value in values.items()})
    moments_digest(plan, inventory, moments)
    tracemalloc.start()
    moments_digest(plan, inventory, moments)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 * gram.nbytes, f"{peak} bytes for matrices of {gram.nbytes}"


def experts_of(seed: int) -> ExpertMatrices:
    source = torch.Generator().manual_seed(seed)
    shapes = ((WIDTH, HIDDEN), (WIDTH, HIDDEN), (HIDDEN, WIDTH))
    return ExpertMatrices(*(torch.randn(shape, generator=source) for shape in shapes))


@pytest.mark.parametrize("kernel", ["wanda", "sparsegpt"])
def test_moments_of_channels_are_aligned_with_the_channels(kernel: str) -> None:
    """An expert and a copy of it with its channels in another order: their average is the expert, and so are its zeros."""
    inventory = case("mixtral").inventory
    first, order = experts_of(0), torch.randperm(WIDTH, generator=torch.Generator().manual_seed(1))
    second = permuted(first, order)
    merge = Merge(into=0, members=(0, 1), weights=(0.5, 0.5), kernel="aligned")
    rule = Sparsity(share=0.5, kernel=kernel)
    assert not torch.equal(align(first, second), torch.arange(WIDTH))
    moments = drawn_moments(inventory).only(rule.moments)
    values = {name: moments.layer(name, 0).copy() for name in rule.moments}
    for name, value in values.items():
        channels = order.numpy() if "channel" in name else np.arange(HIDDEN)
        value[1] = value[0][np.ix_(*[channels] * (value.ndim - 1))]
        values[name] = np.concatenate([value, value])  # 16 experts
    plans = LayerPlan(sparsity=rule), LayerPlan(experts=(0, *range(2, 16)), merges=(merge,), sparsity=rule)
    for moved in (False, True):  # moved: measured on the average itself, in whose channels they already are
        if moved:
            for value in values.values():
                value[1] = value[0]
        stats = Stats({name: (value,) for name, value in values.items()})
        alone, both = (
            LayerMaker(plan, 0, inventory, [first, second].__getitem__, stats, [torch.float32] * 3, torch.empty).whole(
                0
            )
            for plan in plans
        )
        for one, other in zip(alone, both, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)
            assert torch.equal(one == 0, other == 0)


def test_a_merge_is_made_sparse_before_it_is_rounded(tmp_path: Path) -> None:
    source = tiny_source("olmoe", dtype=torch.bfloat16)
    plan = sparse(source.inventory, Sparsity(share=0.5), "mapped")
    written = written_tensors(apply(source, plan, tmp_path / "out"))
    move = next(m for m in transfers(plan, source.inventory) if isinstance(m.recipe, InsideExpert))
    recipe = move.recipe
    assert isinstance(recipe, InsideExpert) and recipe.expert == MEAN.into and recipe.plan.sparsity is not None
    entries = {(e.expert, e.role): e for e in source.inventory.layers[0].with_role(*EXPERT_ROLES)}
    members = [ExpertMatrices(*(source.read(entries[e, role]) for role in EXPERT_ROLES)) for e in MEAN.members]
    exact = merged(MEAN, members).gate_FD
    expected = masked_slowly(exact.double().numpy(), np.ones(HIDDEN), recipe.plan.sparsity)
    assert torch.equal(written[move.target.name], torch.from_numpy(expected).to(torch.bfloat16))


def test_each_expert_is_computed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tiny_source("mixtral")
    plan = sparse(source.inventory, Sparsity(share=0.5), "merged")
    made: list[tuple[Any, ...]] = []
    read: list[TensorEntry] = []
    sparsify, load = inside.sparsified, source.read

    def counted(weight: torch.Tensor, *rest: Any) -> torch.Tensor:
        made.append(tuple(weight.shape))
        return sparsify(weight, *rest)

    def noted(entry: TensorEntry, *rest: Any) -> torch.Tensor:
        read.append(entry)
        return load(entry, *rest)

    monkeypatch.setattr(inside, "sparsified", counted)
    monkeypatch.setattr(Checkpoint, "read", lambda self, *rest: noted(*rest))
    apply(source, plan, tmp_path / "out", shard_bytes=20_000)
    assert made == [(2 * WIDTH, HIDDEN), (HIDDEN, WIDTH)] * 3 * 4, "gate and up of an expert at once, then its down"
    gates = dict.fromkeys((entry.layer, entry.expert) for entry in read if entry.role == "expert.gate")
    assert list(gates) == [(layer, expert) for layer in range(3) for expert in (0, 3, 1, UNSEEN, 4, 6, RARE)]
