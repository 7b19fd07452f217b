"""Values of all options from a few: exact on lines and sums of lines, and at what was measured."""

from __future__ import annotations

import numpy as np

from sweeps.space.anchors import anchors, spread


def test_anchors_are_the_centre_and_both_ends_of_each_axis() -> None:
    found = anchors((7, 3), (6, 2), 3)
    assert found == [(6, 2), (0, 2), (3, 2), (6, 0), (6, 1)]
    assert anchors((5,), (2,), 9) == [(2,), (0,), (1,), (3,), (4,)]
    assert anchors((2, 2), (0, 1), 4) == [(0, 1), (1, 1), (0, 0)]


def test_straight_lines_that_add_up_are_found_again() -> None:
    shape, centre = (9, 5), (8, 4)
    true = 3.0 - 0.5 * np.arange(9)[:, None] + 2.0 * np.arange(5)[None, :]
    known = {one: float(true[one]) for one in anchors(shape, centre, 3)}
    assert np.allclose(spread(known, shape, centre), true)


def test_what_was_measured_stays_as_it_is() -> None:
    rng = np.random.default_rng(0)
    shape, centre = (6, 4), (2, 3)
    known = {one: float(rng.random()) for one in anchors(shape, centre, 4)}
    found = spread(known, shape, centre)
    assert all(abs(found[one] - value) < 1e-12 for one, value in known.items())
