"""A value for each layer in few words."""

from __future__ import annotations

from bench.records.depth_profile import LONGEST, depth_profile


def test_a_long_list_is_its_mean_and_range() -> None:
    values = [0.25, *[0.5] * LONGEST, 1]
    assert depth_profile(values) == "0.525 by layer (0.25 to 1)"
    assert depth_profile(values, "{:.1f}".format) == "0.5 by layer (0.2 to 1.0)"
    assert depth_profile([2] * (LONGEST + 1)) == "2 by layer (2 to 2)"


def test_what_can_be_listed_or_is_no_number_is_left_to_the_caller() -> None:
    assert depth_profile([0.5] * LONGEST) is None
    assert depth_profile(["none"] * 30) is None and depth_profile([True] * 30) is None
    assert depth_profile([[0.5, 1.0]] * 30) is None
