"""Experts that a plan changes inside: what is written against the definitions, in numpy."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bench.applying.apply import apply
from bench.applying.written_moments import cold_experts
from bench.checkpoint.checkpoint import Checkpoint
from bench.experts.whole import stored_expert
from methods.framework.inside import Bases, LowRank, Quantisation, SharedBase, Sparsity
from methods.framework.inventory import EXPERT_ROLES
from methods.framework.layer_plan import LayerPlan, Merge
from methods.framework.plan import Plan
from methods.framework.stats import Stats
from methods.kernels.gptq import gptq
from methods.kernels.quantisation import dequantised
from tests.support.inside_slowly import (
    EXPERTS,
    HIDDEN,
    RARE,
    UNSEEN,
    WIDTH,
    Array,
    channels_of,
    drawn_moments,
    expert_slowly,
    moment_slowly,
)
from tests.support.sparsity_reference import loss, masked_slowly
from tests.support.tiny import tiny_checkpoint

MEAN = Merge(into=0, members=(0, 3), weights=(0.5, 0.5))
ALIGNED = Merge(into=4, members=(UNSEEN, 4, 6), weights=(0.2, 0.5, 0.3), kernel="aligned")
SELECTIONS: dict[str, dict[str, Any]] = {
    "all": {},
    "pruned": {"experts": (1, UNSEEN, RARE, 6)},
    "merged": {"experts": (0, 1, 4, RARE), "merges": (MEAN, ALIGNED)},
    "mapped": {"experts": (0, 1, 4, RARE), "merges": (MEAN, ALIGNED), "constants": (7,), "router": "map"},
}

Made = Callable[..., Checkpoint]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Checkpoint]:
    """Return a function from a dtype to a checkpoint of one layer."""

    @cache
    def made(dtype: torch.dtype = torch.float64) -> Checkpoint:
        folder = tmp_path_factory.mktemp("source")
        return Checkpoint.open(tiny_checkpoint("qwen3_moe", folder, dtype=dtype, num_hidden_layers=1))

    return made


@pytest.fixture
def compressed(source: Made, tmp_path: Path) -> Made:
    """Return a function that writes and opens what one plan of the layer makes of the source."""

    def made(plan: LayerPlan, moments: Stats | None = None, dtype: torch.dtype = torch.float64) -> Checkpoint:
        checkpoint = source(dtype)
        whole = Plan.of(checkpoint.inventory, [plan])
        folder = tmp_path / f"{len(list(tmp_path.iterdir()))}"
        return Checkpoint.open(apply(checkpoint, whole, folder, moments=moments))

    return made


@pytest.fixture(scope="module")
def moments(source: Made) -> Stats:
    """Drawn moments of the source, and means that stand for constants."""
    drawn = drawn_moments(source().inventory)
    means = np.random.default_rng(3).normal(size=(EXPERTS, HIDDEN)) - 2.0
    return Stats({**drawn.values, "routed_output_mean": (means,)}, drawn.tokens)


def kept_by(plan: LayerPlan) -> tuple[int, ...]:
    return tuple(range(EXPERTS)) if plan.experts is None else plan.experts


def channels(count: int, seed: int = 0, multiple: int = 1) -> tuple[tuple[int, ...], ...]:
    """Return channels that stay for each of ``count`` experts, 8 to 24 of them."""
    rng = np.random.default_rng(seed)
    sizes = multiple * rng.integers(8 // multiple, 24 // multiple + 1, count)
    return tuple(tuple(sorted(rng.choice(WIDTH, size, replace=False).tolist())) for size in sizes)


def written(checkpoint: Checkpoint, place: int) -> list[Array]:
    return [matrix.double().numpy() for matrix in stored_expert(checkpoint, 0, place)]


def parts_of(checkpoint: Checkpoint, expert: int | None) -> dict[str, torch.Tensor]:
    """Return what is stored of an expert, or of what all share, by role."""
    entries = [entry for entry in checkpoint.inventory.layers[0].tensors if entry.role.startswith("expert.")]
    return {entry.role: checkpoint.read(entry) for entry in entries if entry.expert == expert}


@pytest.mark.parametrize("selection", SELECTIONS)
def test_channels_that_stay_are_rows_and_columns(
    selection: str, source: Made, compressed: Made, moments: Stats
) -> None:
    chosen = SELECTIONS[selection]
    plan = LayerPlan(**chosen, channels=channels(len(chosen.get("experts", range(EXPERTS)))))
    out = compressed(plan, moments)
    for place, expert in enumerate(kept_by(plan)):
        for found, expected in zip(written(out, place), expert_slowly(source(), plan, 0, expert)[0], strict=True):
            exact = expert not in {merge.into for merge in plan.merges}
            np.testing.assert_allclose(found, expected, rtol=0, atol=0 if exact else 1e-15)


def truncated(weight: Array, rank: int, gram: Array | None) -> Array:
    """Return the product of rank ``rank`` that changes the outputs least: a projection on the directions of the largest."""
    outputs = weight @ weight.T if gram is None else weight @ gram @ weight.T
    directions = np.linalg.eigh(outputs)[1][:, ::-1][:, :rank]
    return np.asarray(directions @ directions.T @ weight)


RANKS = (5, 6, 7)


@pytest.mark.parametrize("cut", [False, True])
@pytest.mark.parametrize("kernel", ["svd", "whitened"])
@pytest.mark.parametrize("selection", ["pruned", "merged"])
def test_factors_are_the_truncated_decomposition(
    selection: str, kernel: str, cut: bool, source: Made, compressed: Made, moments: Stats
) -> None:
    rule = LowRank(kernel=kernel, ranks=(RANKS,) * 4)
    plan = LayerPlan(**SELECTIONS[selection], rank=rule, channels=channels(4) if cut else None)
    out = compressed(plan, moments)
    losses = {True: 0.0, False: 0.0}
    for place, expert in enumerate(kept_by(plan)):
        made, orders = expert_slowly(source(), plan, 0, expert)
        found, parts = written(out, place), parts_of(out, place)
        for role, weight, matrix, rank in zip(EXPERT_ROLES, made, found, RANKS, strict=True):
            assert parts[f"{role}.left"].shape == (weight.shape[0], rank)
            assert parts[f"{role}.right"].shape == (rank, weight.shape[1])
            name = "channel_gram" if role == "expert.down" else "input_gram"
            gram = moment_slowly(moments, plan, 0, name, orders, expert)
            expected = truncated(weight, rank, gram if kernel == "whitened" else None)
            np.testing.assert_allclose(matrix, expected, atol=1e-5)
            if gram is None:
                u, s, vt = np.linalg.svd(weight)
                np.testing.assert_allclose(matrix, u[:, :rank] * s[:rank] @ vt[:rank], atol=1e-9)
                continue
            losses[True] += loss(weight, matrix, gram)
            losses[False] += loss(weight, truncated(weight, rank, None), gram)
            if kernel == "whitened":
                rest = np.linalg.eigvalsh(weight @ gram @ weight.T)[:-rank].sum()
                assert loss(weight, matrix, gram) == pytest.approx(rest, rel=1e-5, abs=1e-6)
    if kernel == "whitened":
        assert losses[True] < 0.95 * losses[False], "the moments serve the outputs"
    else:
        assert losses[True] == pytest.approx(losses[False])


def test_a_rank_of_0_leaves_a_matrix_as_it_is(source: Made, compressed: Made) -> None:
    out = compressed(LayerPlan(rank=LowRank(ranks=((0, 3, 0),) * EXPERTS)))
    for expert in range(EXPERTS):
        found, before = stored_expert(out, 0, expert), stored_expert(source(), 0, expert)
        assert torch.equal(found.gate_FD, before.gate_FD) and torch.equal(found.down_DF, before.down_DF)
        assert not torch.equal(found.up_FD, before.up_FD)


EVERYONE = SharedBase(members=tuple(range(EXPERTS)), weights=(0.125,) * EXPERTS)


@pytest.mark.parametrize("kernel", ["svd", "whitened"])
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
def test_a_base_and_whole_differences_are_the_expert(
    kernel: str, dtype: torch.dtype, bound: float, source: Made, compressed: Made, moments: Stats
) -> None:
    plan = LayerPlan(rank=LowRank(kernel=kernel, ranks=((WIDTH,) * 3,) * EXPERTS, base=EVERYONE))
    out = compressed(plan, moments, dtype)
    for expert in range(EXPERTS):
        for found, before in zip(written(out, expert), written(source(dtype), expert), strict=True):
            np.testing.assert_allclose(found, before, atol=bound)


@pytest.mark.parametrize("kernel", ["svd", "whitened"])
@pytest.mark.parametrize("selection", ["pruned", "mapped"])
def test_columns_of_a_base_are_those_with_the_largest_outputs(
    selection: str, kernel: str, source: Made, compressed: Made, moments: Stats
) -> None:
    chosen = SELECTIONS[selection]
    members, weights = chosen["experts"][1:], (0.5, 0.3, 0.2)
    base = SharedBase(members=members, weights=weights, columns=0.5)
    plan = LayerPlan(**chosen, rank=LowRank(kernel=kernel, ranks=((WIDTH,) * 3,) * 4, base=base))
    out = compressed(plan, moments)
    shared = parts_of(out, None)
    made = {expert: expert_slowly(source(), plan, 0, expert) for expert in kept_by(plan)}
    for place, role in enumerate(EXPERT_ROLES):
        mean = sum(w * made[e][0][place] for e, w in zip(members, weights, strict=True))
        side = "channel" if role == "expert.down" else "input"
        square = np.zeros(mean.shape[1])
        for e, w in zip(members, weights, strict=True):
            name = f"{side}_gram" if kernel == "whitened" else f"{side}_square"
            found = moment_slowly(moments, plan, 0, name, made[e][1], e)
            square += 0.0 if found is None else w * (np.diag(found) if found.ndim == 2 else found)
        scores = [float(np.linalg.norm(mean[:, j]) * np.sqrt(square[j])) for j in range(mean.shape[1])]
        best = sorted(sorted(range(len(scores)), key=lambda j: -scores[j])[: len(scores) // 2])
        name = f"expert.shared_{role.partition('.')[2]}"
        assert shared[f"{name}.columns"].tolist() == best
        np.testing.assert_allclose(shared[name].numpy(), mean[:, best], atol=1e-12)
        absent = [j for j in range(mean.shape[1]) if j not in best]
        for index, expert in enumerate(kept_by(plan)):  # differences are to the whole average
            expected = made[expert][0][place].copy()
            expected[:, absent] -= mean[:, absent]
            np.testing.assert_allclose(written(out, index)[place], expected, atol=1e-10)


@pytest.mark.parametrize("activation", ["silu", "tanh"])
def test_mixtures_of_bases_by_their_formula(activation: str, source: Made, compressed: Made) -> None:
    bases = Bases(count=3, rank=12, activation=activation, steps=60)
    out = compressed(LayerPlan(experts=(1, 2, 5, 6), bases=bases), dtype=torch.float32)
    shared = {name: tensor.double().numpy() for name, tensor in parts_of(out, None).items()}
    lost = kept = 0.0
    for place, expert in enumerate((1, 2, 5, 6)):
        parts = {name: tensor.double().numpy() for name, tensor in parts_of(out, place).items()}
        before, found = written(source(torch.float32), expert), written(out, place)
        assert np.array_equal(found[2], before[2]), "down stays as it is"
        for index, name in enumerate(("gate", "up")):
            mix = parts[f"expert.{name}.mix"]
            assert mix.min() >= 0 and mix.sum() == pytest.approx(1.0, abs=1e-6)
            mixed = sum(weight * base for weight, base in zip(mix, shared[f"expert.shared_{name}"], strict=True))
            mixed = np.tanh(mixed) if activation == "tanh" else mixed / (1 + np.exp(-mixed))
            np.testing.assert_allclose(found[index], parts[f"expert.{name}.left"] @ mixed, atol=1e-5)
            lost += float(np.square(found[index] - before[index]).sum())
            kept += float(np.square(before[index]).sum())
    assert lost < 0.8 * kept, "random matrices have little in common, but 12 of 32 directions hold more than nothing"


def rounded(weight: Array, bits: int, group: int, dtype: torch.dtype) -> Array:
    """Return the matrix rounded to the nearest, weight by weight."""
    out = np.zeros_like(weight)
    for row in range(weight.shape[0]):
        for start in range(0, weight.shape[1], group):
            part = weight[row, start : start + group]
            scale = float(torch.tensor(np.abs(part).max() / ((2**bits - 1) / 2)).to(dtype))
            for place, value in enumerate(part):
                code = max(-(2 ** (bits - 1)), min(2 ** (bits - 1) - 1, round(float(value) / scale)))
                out[row, start + place] = float(torch.tensor(code * scale, dtype=torch.float64).to(dtype))
    return out


@pytest.mark.parametrize("selection", ["pruned", "merged"])
def test_rounding_to_the_nearest(selection: str, source: Made, compressed: Made) -> None:
    kept = channels(4, multiple=8)
    plan = LayerPlan(**SELECTIONS[selection], channels=kept, bits=Quantisation(bits=4, group=8))
    out = compressed(plan)
    for place, expert in enumerate(kept_by(plan)):
        assert written(out, place)[0].shape == (len(kept[place]), HIDDEN)
        for found, made in zip(written(out, place), expert_slowly(source(), plan, 0, expert)[0], strict=True):
            different = np.abs(found - rounded(made, 4, 8, torch.float64)) > 1e-9
            # The largest weight of a group lies half a step from its code, to which side the last digit of a sum decides.
            assert different.mean() <= (0.02 if expert in {merge.into for merge in plan.merges} else 0.0)


@pytest.mark.parametrize("selection", ["pruned", "merged"])
def test_gptq_gets_the_moments_of_the_expert(selection: str, source: Made, compressed: Made, moments: Stats) -> None:
    plan = LayerPlan(**SELECTIONS[selection], bits=Quantisation(bits=4, group=16, kernel="gptq"))
    out = compressed(plan, moments)
    for place, expert in enumerate(kept_by(plan)):
        made, orders = expert_slowly(source(), plan, 0, expert)
        for role, weight, found in zip(EXPERT_ROLES, made, written(out, place), strict=True):
            name = "channel_gram" if role == "expert.down" else "input_gram"
            gram = moment_slowly(moments, plan, 0, name, orders, expert)
            known = None if gram is None else torch.from_numpy(gram)
            expected = dequantised(gptq(torch.from_numpy(weight), 4, 16, known, torch.float64), torch.float64).numpy()
            if gram is None:
                np.testing.assert_allclose(expected, rounded(weight, 4, 16, torch.float64), atol=1e-12)
            # Means over members, and with the layer, are rounded in float32, after which few codes fall on the other side.
            assert (np.abs(found - expected) > 1e-6).mean() <= (0.0 if gram is None else 0.02)


@pytest.mark.parametrize("kernel", ["rtn", "gptq", "awq"])
@pytest.mark.parametrize("pattern", ["unstructured", "2:4"])
def test_zeros_stay_zero_in_few_bits(kernel: str, pattern: str, source: Made, compressed: Made, moments: Stats) -> None:
    sparsity = Sparsity(share=0.5, pattern=pattern, kernel="wanda")
    plan = LayerPlan(experts=(1, RARE), sparsity=sparsity, bits=Quantisation(bits=8, group=16, kernel=kernel))
    out = compressed(plan, moments, torch.float32)
    for place, expert in enumerate((1, RARE)):
        made, orders = expert_slowly(source(torch.float32), plan, 0, expert)
        for role, weight, found in zip(EXPERT_ROLES, made, written(out, place), strict=True):
            name = "channel_square" if role == "expert.down" else "input_square"
            square = moment_slowly(moments, plan, 0, name, orders, expert)
            assert square is not None
            sparse = masked_slowly(weight, np.sqrt(square), sparsity)
            assert (sparse == 0).mean() == 0.5 and not found[sparse == 0].any()
            assert (found == 0).mean() < 0.6, "8 bits round few others to zero"


@pytest.mark.parametrize("kernel", ["magnitude", "wanda", "moe_pruner"])
def test_zeros_within_the_channels_that_stay(kernel: str, source: Made, compressed: Made, moments: Stats) -> None:
    sparsity = Sparsity(share=0.5, kernel=kernel)
    plan = LayerPlan(**SELECTIONS["merged"], channels=channels(4), sparsity=sparsity)
    out = compressed(plan, moments)
    for place, expert in enumerate(kept_by(plan)):
        made, orders = expert_slowly(source(), plan, 0, expert)
        assert len(channels_of(plan, expert)) == made[0].shape[0] < WIDTH
        for role, weight, found in zip(EXPERT_ROLES, made, written(out, place), strict=True):
            names = [name for name in sparsity.moments if ("channel" in name) == (role == "expert.down")]
            square = moment_slowly(moments, plan, 0, names[0], orders, expert) if names else None
            norms = np.ones(weight.shape[1]) if square is None else np.sqrt(square)
            np.testing.assert_allclose(found, masked_slowly(weight, norms, sparsity), atol=1e-12)


FALLBACKS: list[tuple[str, LayerPlan, LayerPlan]] = [
    *(
        (kernel, LayerPlan(sparsity=Sparsity(share=0.5, kernel=kernel)), LayerPlan(sparsity=Sparsity(share=0.5)))
        for kernel in ("wanda", "moe_pruner", "sparsegpt")
    ),
    (
        "whitened",
        LayerPlan(rank=LowRank(kernel="whitened", ranks=(RANKS,) * EXPERTS)),
        LayerPlan(rank=LowRank(ranks=(RANKS,) * EXPERTS)),
    ),
    (
        "whitened difference",
        LayerPlan(rank=LowRank(kernel="whitened", ranks=(RANKS,) * EXPERTS, base=EVERYONE)),
        LayerPlan(rank=LowRank(ranks=(RANKS,) * EXPERTS, base=EVERYONE)),
    ),
    (
        "gptq",
        LayerPlan(bits=Quantisation(bits=4, group=16, kernel="gptq")),
        LayerPlan(bits=Quantisation(bits=4, group=16)),
    ),
]


@pytest.mark.parametrize(("name", "plan", "blind"), FALLBACKS, ids=[name for name, _, _ in FALLBACKS])
def test_an_expert_without_tokens_is_made_from_its_weights_alone(
    name: str, plan: LayerPlan, blind: LayerPlan, source: Made, compressed: Made, moments: Stats
) -> None:
    one, other = compressed(plan, moments), compressed(blind)
    assert all(map(np.array_equal, written(one, UNSEEN), written(other, UNSEEN)))
    assert not any(map(np.array_equal, written(one, RARE), written(other, RARE))), f"one token is enough for {name}"
    inventory = source().inventory

    def cold(layer: LayerPlan) -> int:
        return cold_experts(Plan.of(inventory, [layer]), inventory, moments)

    assert (cold(plan), cold(blind)) == (1, 0)
    seen = Merge(into=UNSEEN, members=(UNSEEN, 3), weights=(0.5, 0.5))
    merged = plan.model_copy(update={"experts": (0, 1, 2, 4, 5, 6, 7), "merges": (seen,)})
    gone = plan.model_copy(update={"experts": (0, 1, 3, 4, 5, 6, 7)})
    if plan.rank is None:
        assert (cold(merged), cold(gone)) == (0, 0), "merged with one that saw tokens; removed"
