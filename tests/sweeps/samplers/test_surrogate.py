"""The model of trials: it passes through what it has seen, and expects most where a smooth function is low."""

from __future__ import annotations

import numpy as np

from sweeps.samplers.moves import MANY
from sweeps.samplers.surrogate import MOST, fitted, smoothing
from sweeps.space.levels import Axis, LevelSpace


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


def deep(units: int) -> LevelSpace:
    axes = [Axis(f"{knob}.layer.{unit}", unit, (0, 1)) for unit in range(units) for knob in ("1.keep", "2.keep")]
    sizes = {"bytes": tuple(np.ones((2, 2)) for _ in range(units))}
    return LevelSpace(tuple(axes), tuple(map(str, range(units))), sizes, {"bytes": 0.0}, {})


def test_profiles_are_smoothed_over_the_depth_each_knob_by_itself() -> None:
    assert smoothing(deep(MANY - 1)) is None
    across = smoothing(deep(MANY))
    assert across is not None and across.shape == (2 * MANY, 2 * MANY)
    np.testing.assert_allclose(across.sum(axis=1), 1.0)
    assert across[0, 0] > across[0, 2] > across[0, 4] > 0 and (across[::2, 1::2] == 0).all()


def test_many_layers_are_told_apart_by_the_shape_over_the_depth() -> None:
    depth = np.linspace(0.0, 1.0, 2 * MANY)
    across = smoothing(deep(MANY))
    rng = np.random.default_rng(3)
    order = np.argsort([axis.name for axis in deep(MANY).axes], kind="stable")  # each knob a shape of its own
    wanted = np.empty(2 * MANY)
    wanted[order] = np.abs(2 * np.concatenate([depth[:MANY], depth[:MANY]]) - 0.5)

    def drawn(count: int) -> np.ndarray:
        tilt = rng.normal(size=(count, 1)) * 0.3
        return np.clip(wanted * rng.random((count, 1)) + tilt + rng.normal(size=(count, 2 * MANY)) * 0.2, 0, 1)

    def damage(points: np.ndarray) -> np.ndarray:
        return (((points - wanted) @ np.asarray(across).T) ** 2).sum(axis=1)

    seen, moves = drawn(24), drawn(400)
    ranks = [
        np.argsort(np.argsort(damage(moves)))[np.argsort(-fitted(seen, damage(seen), a).improvement(moves))[:20]]
        for a in (None, across)
    ]
    assert np.median(ranks[1]) < np.median(ranks[0]) and np.median(ranks[1]) < 100
