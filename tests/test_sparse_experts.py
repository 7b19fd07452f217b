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

from bench import recipes
from bench.apply import PLAN_FILE, apply
from bench.checkpoint import Checkpoint
from bench.laws.cases import case
from bench.load import load_model
from bench.moments import moments_digest
from bench.realise import realised
from methods.cost import cost, zeros
from methods.errors import CheckpointError, StatsError
from methods.inventory import EXPERT_ROLES, Inventory
from methods.kernels.merging import ExpertMatrices, align, merged, permuted
from methods.plan import SPARSITY_MOMENTS, LayerPlan, Merge, Plan, Sparsity
from methods.stats import Stats
from methods.transfer import SparseExpert, transfers
from tests.masking import aligned_slowly, logits
from tests.sparsity_reference import Array, masked_slowly, sparsegpt_slowly
from tests.tiny import FAMILIES, tiny_checkpoint, tiny_tokens

KERNELS = ("magnitude", "wanda", "moe_pruner", "sparsegpt")
UNSEEN, RARE = 2, 5
"""Experts of which the moments know nothing, and one token."""
HIDDEN, WIDTH, EXPERTS = 64, 32, 8
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


def moments_of(inventory: Inventory, seed: int = 0) -> Stats:
    """Return moments of drawn inputs, correlated and of unequal size."""
    rng = np.random.default_rng(seed)
    values: dict[str, list[Array | None]] = {name: [] for name in sorted(frozenset().union(*SPARSITY_MOMENTS.values()))}
    for layer in inventory.layers:
        grams = {"input": _grams(rng, HIDDEN), "channel": _grams(rng, WIDTH)}
        for name, own in values.items():
            gram = grams["channel" if "channel" in name else "input"]
            square = np.diagonal(gram, axis1=1, axis2=2)
            square = square * rng.uniform(0.1, 1.0, square.shape) if name.startswith("gated") else square
            own.append(None if layer.mlp != "moe" else gram if name.endswith("gram") else square.astype(np.float64))
    return Stats({name: tuple(own) for name, own in values.items()}, tokens=100)


def _grams(rng: np.random.Generator, size: int) -> Array:
    grams = []
    for expert in range(EXPERTS):
        tokens = {UNSEEN: 0, RARE: 1}.get(expert, 200)
        inputs = rng.normal(size=(tokens, size)) @ (rng.normal(size=(size, size)) / 8 + np.eye(size))
        inputs *= rng.lognormal(sigma=0.7, size=size)
        grams.append((inputs.T @ inputs / max(tokens, 1)).astype(np.float32))
    return np.array(grams)


def slow_expert(checkpoint: Checkpoint, recipe: SparseExpert, moments: Stats) -> list[Array]:
    """Return the three matrices that the definitions give, in float64."""
    entries = {(e.expert, e.role): e for e in checkpoint.inventory.layers[recipe.layer].with_role(*EXPERT_ROLES)}
    merge = recipe.merge
    indices = merge.members if merge else (recipe.expert,)
    own = {e: tuple(checkpoint.read(entries[e, role]).double() for role in EXPERT_ROLES) for e in indices}
    orders = {e: np.arange(WIDTH) for e in indices}
    if merge and merge.kernel == "aligned":
        for e in indices:
            placed = aligned_slowly(own[recipe.expert], own[e])
            orders[e] = np.array([int((own[e][0] == row).all(dim=1).nonzero()) for row in placed[0]])
            own[e] = placed
    weights = merge.weights if merge else (1.0,)
    made = [sum(w * own[e][i] for w, e in zip(weights, indices, strict=True)).numpy() for i in range(3)]
    rule, kernel = recipe.sparsity, recipe.sparsity.kernel
    out = []
    for role, weight in zip(EXPERT_ROLES, made, strict=True):
        known: list[Array] = []
        for name in rule.moments:
            if ("channel" in name) == (role == "expert.down"):
                rows = {e: moments.layer(name, recipe.layer)[e].astype(np.float64) for e in indices}
                if role == "expert.down":
                    rows = {e: row[np.ix_(*[orders[e]] * row.ndim)] for e, row in rows.items()}
                known = [row for row in rows.values() if row.any()]
        if not known:
            out.append(masked_slowly(weight, np.ones(weight.shape[1]), rule))
        elif kernel == "sparsegpt":
            out.append(sparsegpt_slowly(weight, np.mean(known, axis=0), rule))
        else:
            out.append(masked_slowly(weight, np.sqrt(np.mean(known, axis=0)), rule))
    return out


def written_tensors(folder: Path) -> dict[str, torch.Tensor]:
    return {k: v for path in sorted(folder.glob("*.safetensors")) for k, v in load_file(path).items()}


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize(("family", "shape"), [("mixtral", "all"), ("qwen3_moe", "pruned"), ("olmoe", "mapped")])
def test_what_is_written_is_the_slow_reference(family: str, shape: str, kernel: str, tmp_path: Path) -> None:
    source = Checkpoint.open(tiny_checkpoint(family, tmp_path / "source", dtype=torch.float64, num_hidden_layers=1))
    inventory, moments = source.inventory, moments_of(source.inventory)
    plan = sparse(inventory, Sparsity(share=0.6, kernel=kernel), shape)
    out = apply(source, plan, tmp_path / "out", moments=moments)
    written = written_tensors(out)
    found, compared = 0, 0
    expected: dict[int, list[Array]] = {}
    for move in transfers(plan, inventory):
        if not isinstance(move.recipe, SparseExpert):
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


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("family", FAMILIES)
def test_what_runs_in_memory_is_what_is_written_bit_for_bit(family: str, shape: str, tmp_path: Path) -> None:
    for dtype, pattern, kernel in (
        (torch.float32, "unstructured", "sparsegpt"),
        (torch.bfloat16, "2:4", "wanda"),
        (torch.bfloat16, "4:8", "moe_pruner"),
    ):
        folder = tmp_path / f"{kernel}"
        source = Checkpoint.open(tiny_checkpoint(family, folder / "source", dtype=dtype))
        inventory, moments = source.inventory, moments_of(source.inventory, seed=1)
        plan = sparse(inventory, Sparsity(share=0.5, pattern=pattern, kernel=kernel), shape)
        written = load_model(apply(source, plan, folder / "out", moments=moments))
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
    source = Checkpoint.open(tiny_checkpoint("qwen2_moe", tmp_path / "source"))
    model, moments = load_model(source.path), moments_of(source.inventory)
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
    source = Checkpoint.open(tiny_checkpoint("mixtral", tmp_path / "source"))
    plan = sparse(source.inventory, Sparsity(share=0.5, kernel=kernel))
    moments, names = moments_of(source.inventory), sorted(SPARSITY_MOMENTS[kernel])
    one = moments.only({names[1]})
    shape = Stats({name: tuple(v[:, :3] for v in values) for name, values in moments.values.items()})
    endless = {name: tuple(v.copy() for v in values) for name, values in moments.values.items()}
    endless[names[0]][1][3] = np.inf
    model = load_model(source.path)
    versions = {name: tensor._version for name, tensor in model.state_dict().items()}
    for passed, words in (
        (None, f"none were passed; measure '{names[0]}', '{names[1]}' on the source"),
        (one, f"those at hand lack '{names[0]}'; measure '{names[0]}' on"),
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
    source = Checkpoint.open(tiny_checkpoint("mixtral", tmp_path / "source"))
    out = apply(source, sparse(source.inventory, Sparsity(share=0.5)), tmp_path / "out")
    assert "moments" not in json.loads((out / PLAN_FILE).read_text())["provenance"]


@pytest.mark.parametrize("kernel", ["wanda", "sparsegpt"])
def test_other_moments_are_other_work_and_those_of_experts_that_go_do_not_count(kernel: str, tmp_path: Path) -> None:
    source = Checkpoint.open(tiny_checkpoint("mixtral", tmp_path / "source"))
    plan = sparse(source.inventory, Sparsity(share=0.5, kernel=kernel), "merged")
    moments = moments_of(source.inventory)
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
    moments = moments_of(inventory).only(rule.moments)
    values = {name: moments.layer(name, 0).copy() for name in rule.moments}
    for name, value in values.items():
        channels = order.numpy() if "channel" in name else np.arange(HIDDEN)
        value[1] = value[0][np.ix_(*[channels] * (value.ndim - 1))]
        values[name] = np.concatenate([value, value])  # 16 experts
    recipe = SparseExpert(0, 0, rule, merge)
    for moved in (False, True):  # moved: measured on the average itself, in whose channels they already are
        if moved:
            for value in values.values():
                value[1] = value[0]
        stats = Stats({name: (value,) for name, value in values.items()})
        alone = recipes.sparse_expert(SparseExpert(0, 0, rule), [first], stats, inventory)
        both = recipes.sparse_expert(recipe, [first, second], stats, inventory)
        for one, other in zip(alone, both, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)
            assert torch.equal(one == 0, other == 0)


def test_a_merge_is_made_sparse_before_it_is_rounded(tmp_path: Path) -> None:
    source = Checkpoint.open(tiny_checkpoint("olmoe", tmp_path / "source", dtype=torch.bfloat16))
    plan = sparse(source.inventory, Sparsity(share=0.5), "mapped")
    written = written_tensors(apply(source, plan, tmp_path / "out"))
    move = next(m for m in transfers(plan, source.inventory) if isinstance(m.recipe, SparseExpert) and m.recipe.merge)
    recipe = move.recipe
    assert isinstance(recipe, SparseExpert) and recipe.merge == MEAN
    entries = {(e.expert, e.role): e for e in source.inventory.layers[0].with_role(*EXPERT_ROLES)}
    members = [ExpertMatrices(*(source.read(entries[e, role]) for role in EXPERT_ROLES)) for e in MEAN.members]
    exact = merged(MEAN, members).gate_FD
    expected = masked_slowly(exact.double().numpy(), np.ones(HIDDEN), recipe.sparsity)
    assert torch.equal(written[move.target.name], torch.from_numpy(expected).to(torch.bfloat16))


def test_each_expert_is_computed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = Checkpoint.open(tiny_checkpoint("mixtral", tmp_path / "source"))
    plan = sparse(source.inventory, Sparsity(share=0.5), "merged")
    made: list[SparseExpert] = []
    real = recipes.sparse_expert

    def counted(recipe: SparseExpert, *rest: Any) -> ExpertMatrices:
        made.append(recipe)
        return real(recipe, *rest)

    monkeypatch.setattr(recipes, "sparse_expert", counted)
    apply(source, plan, tmp_path / "out", shard_bytes=20_000)
    assert [(r.layer, r.expert) for r in made] == [(layer, e) for layer in range(3) for e in (0, 1, 4, RARE)]
