"""The table of what was really served, and the pairs that stand for all of it."""

from __future__ import annotations

from collections import Counter

import pytest

from bench.laws.served import Trial, covering, table
from bench.serving.kinds import KINDS
from tests.support.tiny import FAMILIES


def test_the_capability_table_numbers_its_reasons() -> None:
    found = [Trial("a", kind, "served") for kind in KINDS] + [Trial("b", kind, "too wide") for kind in KINDS]
    text = table([*found[:-1], Trial("b", list(KINDS)[-1], "differs")])
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert len(rows) == 2 + len(KINDS) and rows[2].endswith("| served | no [1] |")
    assert rows[-1].endswith("| served | differs |") and text.count("too wide") == 1


@pytest.mark.parametrize("families", [FAMILIES, FAMILIES[:4], (*FAMILIES, "another", "further")])
def test_every_kind_meets_two_families_and_every_family_several_kinds(families: tuple[str, ...]) -> None:
    pairs = covering(families)
    by_kind, by_family = Counter(kind for _, kind in pairs), Counter(family for family, _ in pairs)
    assert set(by_kind) == set(KINDS) and min(by_kind.values()) >= 2
    assert set(by_family) == set(families) and min(by_family.values()) >= 5
    assert len(pairs) <= 2 * (len(KINDS) + len(families) + 1)
    for family in families:
        assert {(family, "counts"), (family, "constants")} <= pairs, "these run code of the family's own"
