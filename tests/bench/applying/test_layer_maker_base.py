"""A base that every entry of every expert has a weight of its own in: what is written against loops over entries."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bench.applying.apply import apply
from bench.applying.in_memory import realised
from bench.applying.moments import entry_fisher
from bench.applying.written_moments import check_moments, moments_digest
from bench.calibration.calibrate import calibrate
from bench.checkpoint.checkpoint import Checkpoint
from bench.experts.whole import stored_expert
from bench.models.load import load_model
from methods.d2_moe import D2MoE
from methods.framework.compose import compose
from methods.framework.errors import StatsError
from methods.framework.inside import LowRank, SharedBase
from methods.framework.inventory import EXPERT_ROLES
from methods.framework.layer_plan import LayerPlan, Merge
from methods.framework.plan import Plan
from methods.framework.stats import Stats
from methods.framework.transfer import result
from methods.kernels.entry_mean import EntryMean
from tests.support.inside_slowly import (
    EXPERTS,
    HIDDEN,
    UNSEEN,
    WIDTH,
    Array,
    drawn_moments,
    entry_base_slowly,
    expert_slowly,
    moment_slowly,
)
from tests.support.streamed_pass import RAGGED
from tests.support.tiny import tiny_checkpoint, tiny_tokens

MEAN = Merge(into=0, members=(0, 3), weights=(0.5, 0.5))
ALIGNED = Merge(into=4, members=(UNSEEN, 4, 6), weights=(0.2, 0.5, 0.3), kernel="aligned")
SELECTIONS: dict[str, dict[str, Any]] = {
    "all": {},
    "pruned": {"experts": (1, UNSEEN, 5, 6)},
    "merged": {"experts": (0, 1, 4, 5), "merges": (MEAN, ALIGNED), "router": "mean"},
}


def plan_of(selection: str, kernel: str = "svd", columns: float = 1.0) -> LayerPlan:
    """Return the plan with whole factors, so that base and factors together are the expert."""
    chosen = SELECTIONS[selection]
    kept = chosen.get("experts", tuple(range(EXPERTS)))
    base = SharedBase(members=kept, kernel="fisher", columns=columns)
    return LayerPlan(**chosen, rank=LowRank(kernel=kernel, ranks=((WIDTH,) * 3,) * len(kept), base=base))


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    folder = tmp_path_factory.mktemp("source")
    return Checkpoint.open(tiny_checkpoint("qwen3_moe", folder, dtype=torch.float64, num_hidden_layers=1))


@pytest.fixture(scope="module")
def moments(source: Checkpoint) -> Stats:
    return drawn_moments(source.inventory)


def shared_of(checkpoint: Checkpoint) -> dict[str, Array]:
    """Return what all experts of the layer share, by role."""
    entries = [e for e in checkpoint.inventory.layers[0].tensors if e.role.startswith("expert.") and e.expert is None]
    return {entry.role: checkpoint.read(entry).double().numpy() for entry in entries}


def test_the_mean_of_three_matrices_by_hand() -> None:
    mean = EntryMean()
    for weight, mass in (
        ([1.0, 2.0, 6.0], [1e-30, 0.0, 0.0]),
        ([5.0, 4.0, 0.0], [3e-30, 2.0, 0.0]),
        ([9.0] * 3, [0.0] * 3),
    ):
        mean.add(torch.tensor([weight]), torch.tensor([mass]))
    torch.testing.assert_close(mean.value(), torch.tensor([[4.0, 4.0, 5.0]], dtype=torch.float64))


@pytest.mark.parametrize("kernel", ["svd", "whitened"])
@pytest.mark.parametrize("selection", SELECTIONS)
def test_every_entry_is_weighed_by_its_own_squares(
    selection: str, kernel: str, source: Checkpoint, moments: Stats, tmp_path: Path
) -> None:
    plan = plan_of(selection, kernel)
    out = Checkpoint.open(apply(source, Plan.of(source.inventory, [plan]), tmp_path / "out", moments=moments))
    assert plan.rank is not None and plan.rank.base is not None
    kept = plan.rank.base.members
    expected = entry_base_slowly(source, plan, 0, moments, kept)
    shared = shared_of(out)
    for role, base in zip(EXPERT_ROLES, expected, strict=True):
        np.testing.assert_allclose(shared[f"expert.shared_{role.partition('.')[2]}"], base, rtol=1e-6, atol=1e-9)
    plain = [np.mean([expert_slowly(source, plan, 0, e)[0][i] for e in kept], axis=0) for i in range(3)]
    assert all(np.abs(base - mean).max() > 1e-3 for base, mean in zip(expected, plain, strict=True))
    for place, expert in enumerate(kept):
        made = [matrix.double().numpy() for matrix in stored_expert(out, 0, place)]
        for found, before in zip(made, expert_slowly(source, plan, 0, expert)[0], strict=True):
            np.testing.assert_allclose(found, before, atol=1e-9)


@pytest.mark.parametrize("kernel", ["svd", "whitened"])
def test_columns_count_the_inputs_of_all_experts_by_their_tokens(
    kernel: str, source: Checkpoint, moments: Stats, tmp_path: Path
) -> None:
    plan = plan_of("pruned", kernel, columns=0.5)
    out = Checkpoint.open(apply(source, Plan.of(source.inventory, [plan]), tmp_path / "out", moments=moments))
    assert plan.rank is not None and plan.rank.base is not None
    members = plan.rank.base.members
    tokens = moments.layer("routed_tokens", 0)
    bases = entry_base_slowly(source, plan, 0, moments, members)
    for role, base in zip(EXPERT_ROLES, bases, strict=True):
        side = "channel" if role == "expert.down" else "input"
        square = np.zeros(base.shape[1])
        for e in members:
            name = f"{side}_gram" if kernel == "whitened" else f"{side}_square"
            found = moment_slowly(moments, plan, 0, name, {e: np.arange(WIDTH)}, e)
            square += 0.0 if found is None else tokens[e] * (np.diag(found) if found.ndim == 2 else found)
        score = np.linalg.norm(base, axis=0) * np.sqrt(square)
        best = sorted(sorted(range(len(score)), key=lambda j: -score[j])[: len(score) // 2])
        name = f"expert.shared_{role.partition('.')[2]}"
        assert shared_of(out)[f"{name}.columns"].tolist() == best
        np.testing.assert_allclose(shared_of(out)[name], base[:, best], rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("family", ["mixtral", "qwen2_moe", "deepseek_v3"])
def test_measured_written_and_realised_are_one_model(family: str, tmp_path: Path) -> None:
    checkpoint = Checkpoint.open(tiny_checkpoint(family, tmp_path / "source"))
    method = D2MoE(keep=0.6)
    moments = calibrate(checkpoint, RAGGED, method.measured, cache=tmp_path / "cache")
    plan = method.plan(checkpoint.inventory, moments)
    written = load_model(apply(checkpoint, plan, tmp_path / "out", moments=moments))
    model, tokens = load_model(checkpoint.path), tiny_tokens()
    with torch.no_grad():
        theirs, plain = written(tokens).logits, model(tokens).logits
        with realised(model, checkpoint.inventory, plan, moments):
            ours = model(tokens).logits
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
        assert (ours - plain).abs().max() > 1e-3, "the plan changes nothing, so nothing was tested"
    other = D2MoE(keep=0.6, weights="expert")
    by_expert = other.plan(checkpoint.inventory, calibrate(checkpoint, RAGGED, other.measured))
    assert plan.digest != by_expert.digest


def test_a_selection_before_takes_the_squares_of_the_experts_that_stay(
    source: Checkpoint, moments: Stats, tmp_path: Path
) -> None:
    """In one plan from the source, and in two steps with sliced statistics: the same tensors."""
    first = Plan.of(source.inventory, [LayerPlan(experts=(1, 4, 6, 7))])
    middle = result(first, source.inventory)
    second = D2MoE(keep=0.7).plan(middle, moments.restricted(first))
    both = compose(first, second, source.inventory)
    rank = both.layers[0].rank
    assert rank is not None and rank.base is not None
    assert rank.base.members == (1, 4, 6, 7) and rank.base.kernel == "fisher" and "entry_fisher" in both.moments
    one = Checkpoint.open(apply(source, both, tmp_path / "one", moments=moments))
    halfway = Checkpoint.open(apply(source, first, tmp_path / "first"))
    two = Checkpoint.open(apply(halfway, second, tmp_path / "two", moments=moments.restricted(first)))
    for entry, other in zip(one.inventory.layers[0].tensors, two.inventory.layers[0].tensors, strict=True):
        assert entry.role == other.role
        torch.testing.assert_close(one.read(entry), two.read(other), rtol=1e-9, atol=1e-12)


def test_members_of_an_average_add_up_unless_they_were_measured_on_it(source: Checkpoint, moments: Stats) -> None:
    values = moments.layer("entry_fisher", 0)
    gate, _, down = entry_fisher(moments, source.inventory, 0, [1, 4], {})
    np.testing.assert_allclose(gate.numpy(), values[1, :, 0] + values[4, :, 0])
    np.testing.assert_allclose(down.numpy(), (values[1, :, 2] + values[4, :, 2]).T)
    same = Stats({"entry_fisher": (values[[0, 1, 2, 3, 1, 5, 6, 7]],)})
    _, up, _ = entry_fisher(same, source.inventory, 0, [1, 4], {4: torch.arange(WIDTH).flip(0)})
    np.testing.assert_array_equal(up.numpy(), values[1, :, 1])


def test_without_squares_nothing_is_written_and_other_squares_are_another_checkpoint(
    source: Checkpoint, moments: Stats, tmp_path: Path
) -> None:
    plan = Plan.of(source.inventory, [plan_of("pruned")])
    assert plan.moments == {"entry_fisher"}
    with pytest.raises(StatsError, match="lack 'entry_fisher'"):
        apply(source, plan, tmp_path / "out", moments=moments.only({"routed_tokens"}))
    assert not (tmp_path / "out").exists()
    values = moments.layer("entry_fisher", 0)
    before = moments_digest(plan, source.inventory, moments)
    for expert, differs in ((0, False), (6, True)):
        other = values.copy()
        other[expert, 3, 1, 5] += 1.0
        assert (moments_digest(plan, source.inventory, Stats({"entry_fisher": (other,)})) != before) is differs
    with pytest.raises(StatsError, match="of another model"):
        check_moments(plan, source.inventory, Stats({"entry_fisher": (values[:, :, :, : HIDDEN - 1],)}))
    broken = values.copy()
    broken[6, 0, 0, 0] = np.nan
    with pytest.raises(StatsError, match="not finite"):
        apply(source, plan, tmp_path / "out", moments=Stats({"entry_fisher": (broken,)}))
