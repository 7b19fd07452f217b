"""The model of trials: it passes through what it has seen, and expects most where a smooth function is low."""

from __future__ import annotations

import numpy as np

from sweeps.samplers.surrogate import MOST, fitted


def bowl(points: np.ndarray) -> np.ndarray:
    return ((points - 0.3) ** 2).sum(axis=1)


def test_it_ranks_moves_on_a_smooth_function() -> None:
    rng = np.random.default_rng(0)
    seen, moves = rng.random((60, 4)), rng.random((400, 4))
    gain = fitted(seen, bowl(seen)).improvement(moves)
    chosen = moves[np.argsort(-gain)[:5]]
    assert bowl(chosen).max() < np.quantile(bowl(moves), 0.05)


def test_what_was_seen_promises_nothing() -> None:
    rng = np.random.default_rng(1)
    seen = rng.random((30, 3))
    process = fitted(seen, bowl(seen))
    assert process.improvement(seen).max() < process.improvement(rng.random((200, 3))).max() - 1


def test_it_remembers_the_best_and_bears_equal_values() -> None:
    rng = np.random.default_rng(2)
    seen = rng.random((MOST + 50, 3))
    process = fitted(seen, bowl(seen))
    assert len(process.points_NA) == MOST
    assert np.isfinite(fitted(seen[:9], np.ones(9)).improvement(seen[:9])).all()
    assert np.isfinite(fitted(np.zeros((5, 3)), np.arange(5.0)).improvement(seen[:9])).all()
