"""The laws on families that not every method is tried on: one method of each kind, in turn."""

from __future__ import annotations

import pytest

from bench.laws import decisions
from bench.laws.check import LAWS
from bench.laws.covering import COVERED, KINDS, pairs
from bench.models.tiny import FAMILIES, RUNNABLE
from methods.registry import method_class, names


@pytest.mark.laws
@pytest.mark.parametrize(("family", "name"), pairs())
def test_a_kind_obeys_every_law(family: str, name: str, subtests: pytest.Subtests) -> None:
    cls = method_class(name)
    case = decisions.case_for(cls, family)
    for _, law in LAWS:
        with subtests.test(law.__name__):
            law(cls, case)


def test_every_kind_and_every_family_is_there() -> None:
    assert {*COVERED, *FAMILIES} == set(RUNNABLE) and not set(COVERED) & set(FAMILIES)
    stages = [method_class(name).stages for name in names()]
    assert set(stages) == {method_class(name).stages for name in KINDS}
    for families in (COVERED, ("a",), ("a", "b", "c"), tuple("abcdefghijklmnopqrst")):
        found = pairs(families)
        assert {name for _, name in found} == set(KINDS)
        assert {family for family, _ in found} == set(families)
        assert len(found) == len(set(found)) == max(len(KINDS), len(families))
