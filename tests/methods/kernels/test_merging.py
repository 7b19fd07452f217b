"""Merging kernels against their definitions, written as loops and full decompositions."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from methods.framework.layer_plan import Merge
from methods.framework.transfer import AveragedRows
from methods.kernels.merging import ExpertMatrices, align, averaged, merged, permuted
from tests.support.masking import aligned_slowly, joint_svd

F, D = 12, 20
SHAPES = ((12, 20), (20, 12), (16, 16))


def experts(count: int, width: int = F, hidden: int = D, dtype: torch.dtype = torch.float64) -> list[ExpertMatrices]:
    source = torch.Generator().manual_seed(3)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=source, dtype=torch.float64).to(dtype)

    return [ExpertMatrices(draw(width, hidden), draw(width, hidden), draw(hidden, width)) for _ in range(count)]


def output(expert: ExpertMatrices, x: torch.Tensor) -> torch.Tensor:
    return expert.down_DF @ (torch.nn.functional.silu(expert.gate_FD @ x) * (expert.up_FD @ x))


def merge_of(count: int, kernel: str = "mean", into: int = 0, rank: int | None = None) -> Merge:
    weights = tuple(0.3 + 0.2 * i for i in range(count))
    return Merge(into=into, members=tuple(range(count)), weights=weights, kernel=kernel, rank=rank)


def largest(one: ExpertMatrices, other: tuple[torch.Tensor, ...]) -> float:
    return max(float((a - b).abs().max()) for a, b in zip(one, other, strict=True))


def test_mean_is_the_weighted_sum_entry_by_entry() -> None:
    members, merge = experts(3), merge_of(3)
    made = merged(merge, members)
    for index, matrix in enumerate(made):
        for position in np.ndindex(*matrix.shape):
            slow = sum(w * m[index][position].item() for w, m in zip(merge.weights, members, strict=True))
            assert matrix[position].item() == pytest.approx(slow, rel=1e-12)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("into", [0, 2])
def test_aligned_is_the_mean_of_members_aligned_by_a_loop(shape: tuple[int, int], into: int) -> None:
    members, merge = experts(3, *shape), merge_of(3, "aligned", into=into)
    slow = [aligned_slowly(tuple(members[into]), tuple(member)) for member in members]
    expected = tuple(sum(w * m[i] for w, m in zip(merge.weights, slow, strict=True)) for i in range(3))
    made = merged(merge, members)
    assert largest(made, expected) < 1e-12
    assert largest(made, merged(merge_of(3, into=into), members)) > 0.1, "aligning changed nothing: an empty comparison"


def test_a_permuted_copy_is_aligned_back_exactly_and_computes_the_same() -> None:
    (expert,) = experts(1)
    order = torch.randperm(F, generator=torch.Generator().manual_seed(5))
    copy = permuted(expert, order)
    x = torch.randn(D, dtype=torch.float64, generator=torch.Generator().manual_seed(6))
    assert (output(expert, x) - output(copy, x)).abs().max() < 1e-12
    assert not torch.equal(copy.gate_FD, expert.gate_FD)
    found = align(expert, copy)
    assert torch.equal(order[found], torch.arange(F))
    half = Merge(into=0, members=(0, 1), weights=(0.5, 0.5), kernel="aligned")
    assert all(torch.equal(a, b) for a, b in zip(merged(half, [expert, copy]), expert, strict=True))
    misaligned = merged(half.model_copy(update={"kernel": "mean"}), [expert, copy])
    assert (output(misaligned, x) - output(expert, x)).abs().max() > 0.1


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("rank", [1, 5, 11])
def test_svd_is_the_truncated_joint_decomposition(shape: tuple[int, int], rank: int) -> None:
    members, merge = experts(3, *shape), merge_of(3, "svd", rank=rank)
    made = merged(merge, members)
    for index, matrix in enumerate(made):
        parts = [member[index] for member in members]
        assert (matrix - joint_svd(parts, merge.weights, rank)).abs().max() < 1e-10
        assert torch.linalg.matrix_rank(matrix) == rank


@pytest.mark.parametrize("shape", SHAPES)
def test_svd_of_full_rank_is_the_weighted_mean(shape: tuple[int, int]) -> None:
    members = experts(2, *shape)
    full = merged(merge_of(2, "svd", rank=max(shape)), members)
    assert largest(full, merged(merge_of(2), members)) == 0.0


def test_a_scrambled_split_of_the_right_factor_would_be_caught() -> None:
    """Reshaping V^T [R, n N] to (n, R, N) without permuting mixes members; the split by columns does not."""
    members, merge = experts(2), merge_of(2, "svd", rank=7)
    parts = [member.gate_FD for member in members]
    u, s, vt = torch.linalg.svd(torch.cat(parts, dim=1), full_matrices=False)
    scrambled = vt[:7].reshape(2, 7, D)
    wrong = u[:, :7] @ torch.diag(s[:7]) @ sum(w * v for w, v in zip(merge.weights, scrambled, strict=True))
    made = merged(merge, members).gate_FD
    assert (made - wrong).abs().max() > 0.1
    assert (made - joint_svd(parts, merge.weights, 7)).abs().max() < 1e-10


def test_svd_of_float32_matrices_tells_small_directions_apart() -> None:
    """Singular values fall from 1 to 1e-5: their squares differ by less than the rounding of a float32 Gram matrix."""
    rotation = torch.linalg.qr(torch.randn(F, F, generator=torch.Generator().manual_seed(8), dtype=torch.float64)).Q
    scaled = rotation * torch.logspace(0, -5, F, dtype=torch.float64)
    members = [m._replace(gate_FD=(scaled @ m.gate_FD).float(), up_FD=m.up_FD.float()) for m in experts(2)]
    members = [m._replace(down_DF=m.down_DF.float()) for m in members]
    for rank in (8, 10):
        merge = merge_of(2, "svd", rank=rank)
        exact = joint_svd([m.gate_FD.double() for m in members], merge.weights, rank)
        left_out = (exact - merged(merge_of(2), members).gate_FD).abs().max()
        assert (merged(merge, members).gate_FD - exact).abs().max() < 0.02 * left_out


@pytest.mark.parametrize("kernel", ["mean", "aligned", "svd"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_narrow_matrices_are_computed_in_float32(kernel: str, dtype: torch.dtype) -> None:
    members = experts(3, dtype=dtype)
    merge = merge_of(3, kernel, rank=4 if kernel == "svd" else None)
    made = merged(merge, members)
    assert all(matrix.dtype == torch.float32 for matrix in made)
    wide = [ExpertMatrices(*(matrix.double() for matrix in member)) for member in members]
    assert largest(made, merged(merge, wide)) < 1e-5
    assert members[0].gate_FD.dtype == dtype


@pytest.mark.parametrize("kernel", ["mean", "aligned", "svd"])
def test_members_are_not_changed(kernel: str) -> None:
    members = experts(2, dtype=torch.float32)
    before = [ExpertMatrices(*(matrix.clone() for matrix in member)) for member in members]
    merged(merge_of(2, kernel, rank=3 if kernel == "svd" else None), members)
    assert all(torch.equal(a, b) for m, n in zip(members, before, strict=True) for a, b in zip(m, n, strict=True))


def test_rows_are_averaged_by_group_and_lone_rows_keep_their_bits() -> None:
    rows = torch.randn(5, 7, generator=torch.Generator().manual_seed(1)).bfloat16()
    recipe = AveragedRows(members=((0,), (1, 3, 4)), weights=((1.0,), (0.2, 0.3, 0.5)))
    found = averaged(recipe, rows)
    assert found.dtype == torch.float32
    assert torch.equal(found[0], rows[0].float())
    for column in range(7):
        slow = 0.2 * rows[1, column].item() + 0.3 * rows[3, column].item() + 0.5 * rows[4, column].item()
        assert found[1, column].item() == pytest.approx(slow, rel=1e-6, abs=1e-7)
    assert averaged(recipe, torch.arange(5.0))[1].item() == pytest.approx(0.2 + 0.9 + 2.0)


def test_the_logarithm_of_the_group_size_restores_the_mass_of_identical_rows() -> None:
    """Softmax over one row for |G| identical ones gives exp(z) / Z' instead of |G| exp(z) / Z; a bias log|G| mends it."""
    source = torch.Generator().manual_seed(2)
    groups = ((0,), (1, 2, 3), (4, 5), (6, 7))
    distinct = torch.randn(4, D, generator=source, dtype=torch.float64)
    rows = torch.stack([distinct[g] for g, group in enumerate(groups) for _ in group])
    x = torch.randn(9, D, generator=source, dtype=torch.float64)
    before = (x @ rows.T).softmax(-1)
    mass = torch.stack([before[:, list(group)].sum(-1) for group in groups], dim=-1)
    single = averaged(AveragedRows(groups, tuple((1 / len(g),) * len(g) for g in groups)), rows)
    z = x @ single.T
    sizes = torch.tensor([float(len(group)) for group in groups], dtype=torch.float64)
    assert ((z + sizes.log()).softmax(-1) - mass).abs().max() < 1e-12
    assert (z.softmax(-1) - mass).abs().max() > 0.05
