"""Drawn moments of tiny models, and what the definitions make of an expert and its moments; nothing of our kernels is used."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from bench.checkpoint.checkpoint import Checkpoint
from methods.framework.inside import QUANTISATION_MOMENTS, SPARSITY_MOMENTS
from methods.framework.inventory import EXPERT_ROLES, Inventory
from methods.framework.layer_plan import LayerPlan
from methods.framework.stats import Stats
from tests.support.masking import aligned_slowly

Array = NDArray[np.float64]

UNSEEN, RARE = 2, 5
"""Experts of which the moments know nothing, and one token."""
HIDDEN, WIDTH, EXPERTS = 64, 32, 8
TOKENS = tuple({UNSEEN: 0, RARE: 1}.get(expert, 200 + expert) for expert in range(EXPERTS))
NAMES = sorted(frozenset().union(*SPARSITY_MOMENTS.values(), *QUANTISATION_MOMENTS.values()))


def drawn_moments(inventory: Inventory, seed: int = 0) -> Stats:
    """Return moments of drawn inputs, correlated and of unequal size."""
    rng = np.random.default_rng(seed)
    values: dict[str, list[Array | None]] = {name: [] for name in NAMES}
    for layer in inventory.layers:
        found = _moments(rng)
        for name, own in values.items():
            own.append(found[name] if layer.mlp == "moe" else None)
    squares = np.random.default_rng([seed, 1])
    values["entry_fisher"] = [_squares(squares) if layer.mlp == "moe" else None for layer in inventory.layers]
    return Stats({name: tuple(own) for name, own in values.items()}, tokens=100)


def _squares(rng: np.random.Generator) -> Array:
    """Return squared gradients of many sizes; one expert has none, and some entries have none in any expert."""
    drawn = np.exp(rng.normal(scale=8.0, size=(EXPERTS, WIDTH, 3, HIDDEN)) - 20.0)
    drawn[UNSEEN] = 0.0
    drawn[:, rng.random((WIDTH, 3, HIDDEN)) < 0.1] = 0.0
    return drawn.astype(np.float32)


def _moments(rng: np.random.Generator) -> dict[str, Array]:
    """Return the moments of one layer."""
    found: dict[str, list[Array]] = {name: [] for name in NAMES}
    magnitudes = []
    for tokens in TOKENS:
        for kind, size in (("input", HIDDEN), ("channel", WIDTH)):
            inputs = rng.normal(size=(tokens, size)) @ (rng.normal(size=(size, size)) / 8 + np.eye(size))
            inputs *= rng.lognormal(sigma=0.7, size=size)
            count = max(tokens, 1)
            found[f"{kind}_gram"].append((inputs.T @ inputs / count).astype(np.float32))
            found[f"{kind}_square"].append(np.square(inputs).sum(axis=0) / count)
            found[f"gated_{kind}_square"].append(found[f"{kind}_square"][-1] * rng.uniform(0.1, 1.0, size))
            if kind == "channel":
                found["channel_magnitude"].append(np.abs(inputs).sum(axis=0) / count)
            else:
                magnitudes.append(np.abs(inputs).sum(axis=0))
    stacked = {name: np.array(rows) for name, rows in found.items() if rows}
    return {**stacked, "input_magnitude": sum(magnitudes) / sum(TOKENS), "routed_tokens": np.array(TOKENS, dtype=float)}


def expert_slowly(
    checkpoint: Checkpoint, plan: LayerPlan, layer: int, expert: int
) -> tuple[list[Array], dict[int, NDArray[np.int64]]]:
    """Return gate, up and down of an expert merged and with its channels, and the order of each member's channels."""
    entries = {(e.expert, e.role): e for e in checkpoint.inventory.layers[layer].with_role(*EXPERT_ROLES)}
    merge = next((merge for merge in plan.merges if merge.into == expert), None)
    members = merge.members if merge else (expert,)
    own = {e: tuple(checkpoint.read(entries[e, role]).double() for role in EXPERT_ROLES) for e in members}
    orders = {e: np.arange(WIDTH) for e in members}
    if merge and merge.kernel == "aligned":
        for e in members:
            placed = aligned_slowly(own[expert], own[e])
            orders[e] = np.array([int((own[e][0] == row).all(dim=1).nonzero()) for row in placed[0]])
            own[e] = placed
    weights = merge.weights if merge else (1.0,)
    made: list[Array] = [sum(w * own[e][i] for w, e in zip(weights, members, strict=True)).numpy() for i in range(3)]
    kept = channels_of(plan, expert)
    return [made[0][kept], made[1][kept], made[2][:, kept]], orders


def channels_of(plan: LayerPlan, expert: int) -> list[int]:
    """Return the channels of an expert that stay."""
    kept = list(range(EXPERTS) if plan.experts is None else plan.experts)
    return list(range(WIDTH) if plan.channels is None else plan.channels[kept.index(expert)])


def entry_base_slowly(
    checkpoint: Checkpoint, plan: LayerPlan, layer: int, moments: Stats, members: tuple[int, ...]
) -> list[Array]:
    """Return the mean of the experts ``members``, entry by entry with its own weights: loops, one entry after the other."""
    squares = moments.layer("entry_fisher", layer).astype(np.float64)
    made = {expert: expert_slowly(checkpoint, plan, layer, expert) for expert in members}
    base = [np.zeros_like(matrix) for matrix in made[members[0]][0]]
    for index, matrix in enumerate(base):
        for row, column in np.ndindex(matrix.shape):
            channel, other = (column, row) if index == 2 else (row, column)
            total = weighed = 0.0
            for matrices, orders in made.values():
                mass = sum(squares[e, order[channel], index, other] for e, order in orders.items())
                total, weighed = total + mass, weighed + mass * matrices[index][row, column]
            plain = sum(matrices[index][row, column] for matrices, _ in made.values()) / len(made)
            matrix[row, column] = weighed / total if total > 0 else plain
    return base


def moment_slowly(
    moments: Stats, plan: LayerPlan, layer: int, name: str, orders: dict[int, NDArray[np.int64]], expert: int
) -> Array | None:
    """Return the mean of a moment over the members of an expert, for its channels; None if none of them saw a token.

    Members count by their tokens where it is a Gram matrix, else alike, also one without tokens. Gram matrices from few tokens
    are drawn towards what the layer has in common, those of channels towards uncorrelated ones.
    """
    channels = "channel" in name
    rows = {e: moments.layer(name, layer)[e].astype(np.float64) for e in orders}
    if not any(TOKENS[e] for e in orders):
        return None
    if channels:
        rows = {e: row[np.ix_(*[orders[e]] * row.ndim)] for e, row in rows.items()}
    if not name.endswith("gram"):
        mean: Array = np.mean(list(rows.values()), axis=0)
        return mean[channels_of(plan, expert)] if channels else mean
    tokens = sum(TOKENS[e] for e in rows)
    gram: Array = sum(TOKENS[e] / tokens * row for e, row in rows.items())
    if channels:
        kept = channels_of(plan, expert)
        gram = gram[np.ix_(kept, kept)]
    if tokens >= len(gram) / 4:
        return gram
    share = tokens / (len(gram) / 4)
    return share * gram + (1 - share) * (np.diag(np.diag(gram)) if channels else pooled_slowly(moments, plan, layer))


def pooled_slowly(moments: Stats, plan: LayerPlan, layer: int) -> Array:
    """Return the mean of x x^T over all pairs of a token and one of the experts that stay or are merged."""
    named = {member for merge in plan.merges for member in merge.members}
    used = sorted({*(range(EXPERTS) if plan.experts is None else plan.experts), *named})
    grams = moments.layer("input_gram", layer).astype(np.float64)
    mean: Array = sum(TOKENS[e] * grams[e] for e in used) / sum(TOKENS[e] for e in used)
    return mean
