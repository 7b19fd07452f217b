"""Which methods are tried on the families that not every method is tried on: one of each kind, in turn.

All of them are tried by ``python -m bench.laws.covering``, which takes minutes for each family.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import cache

from bench.families.family import family_named
from bench.laws.check import check
from bench.laws.decisions import tried
from bench.models.tiny import FAMILIES, RUNNABLE, tiny_config
from methods.framework.inventory import Inventory
from methods.registry import method_class, names

COVERED = tuple(name for name in RUNNABLE if name not in FAMILIES)
"""Families on which the project's own tests try some methods only."""


KINDS = (
    "reap",
    "block_drop",
    "hc_smoe",
    "whitened_svd",
    "layer_drop",
    "awq",
    "mone",
    "camera_p",
    "sparsegpt",
    "naee_greedy",
    "rtn",
    "heapr",
    "d2_moe",
)
"""One method of each kind: what it writes, and what it needs for that."""


def pairs(families: Sequence[str] = COVERED, each: int = 1) -> list[tuple[str, str]]:
    """Return (family, method): every kind of method on some family, every family with ``each`` of them, at least."""
    turns = range(max(each * len(families), len(KINDS)))
    chosen = [families[turn // each % len(families)] for turn in turns]
    kinds = [KINDS[turn % len(KINDS)] for turn in turns]
    for place in turns:
        if _refuses(chosen[place], kinds[place]):
            fits = (n for n in turns if not (_refuses(chosen[place], kinds[n]) or _refuses(chosen[n], kinds[place])))
            other = next(fits, place)
            kinds[place], kinds[other] = kinds[other], kinds[place]
    return sorted(zip(chosen, kinds, strict=True))


def _refuses(family: str, kind: str) -> bool:
    """Return whether a kind of method does not apply to a family."""
    return family in RUNNABLE and tried(method_class(kind)).refuse(_tiny(family)) is not None


@cache
def _tiny(family: str) -> Inventory:
    """Return what the tiny model of a family contains."""
    return family_named(family).inventory(tiny_config(family).to_dict())


def main(arguments: Sequence[str]) -> int:
    """Try every method on the families that are named, or on all that not every method is tried on; tell what failed."""
    failed = 0
    for name in names():
        for outcome in check(name, tuple(arguments) or COVERED):
            if outcome.status == "failed":
                failed += 1
                print(f"{outcome.family} {name} law {outcome.law} {outcome.title}: {outcome.detail}")
    print(f"{failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
