"""Runs every law on one method and every tiny architecture, and says what happened."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

from bench.laws import decisions, realised
from bench.laws.cases import Case, cases
from methods.framework.errors import MoebenchError, RefusedError
from methods.framework.method import Method
from methods.registry import method_class

Law = Callable[[type[Method], Case], None]

LAWS: tuple[tuple[int, Law], ...] = (
    (1, decisions.purity),
    (2, decisions.json_round_trip),
    (3, decisions.validity),
    (4, decisions.budget),
    (5, decisions.neutral_identity),
    (5, realised.neutral_checkpoint),
    (6, realised.cost_is_the_file),
    (7, decisions.relabelling),
    (8, decisions.needs_and_stages),
    (9, decisions.composition),
    (10, realised.reloads_alike),
    (11, decisions.random_draws),
)
"""Number and function of every law that is tried on one method and one architecture."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one law said about one method on one architecture."""

    law: int
    title: str
    family: str
    status: Literal["passed", "refused", "failed"]
    detail: str = ""


def check(name: str, families: tuple[str, ...] = ()) -> Iterator[Outcome]:
    """Yield the outcome of each law for method ``name`` on the tiny architectures (all, or only ``families``)."""
    cls = method_class(name)
    yield _outcome(12, "applies_somewhere", "all", lambda: decisions.applies_somewhere(cls))
    chosen = [case for case in cases() if not families or case.family in families]
    for position, case in enumerate(chosen):
        for number, law in LAWS:
            yield _outcome(number, law.__name__, case.family, _bind(law, cls, case))
        if position == 0:
            across = _bind(decisions.purity_across_processes, cls, case)
            yield _outcome(1, "purity_across_processes", case.family, across)


def _bind(law: Law, cls: type[Method], case: Case) -> Callable[[], None]:
    return lambda: law(cls, case)


def _outcome(number: int, title: str, family: str, run: Callable[[], None]) -> Outcome:
    """Run one law; a refusal by the method is an outcome of its own, any other error is a failure."""
    try:
        run()
    except RefusedError as refusal:
        return Outcome(number, title, family, "refused", str(refusal))
    except (AssertionError, MoebenchError) as failure:
        return Outcome(number, title, family, "failed", str(failure) or type(failure).__name__)
    except Exception as failure:
        return Outcome(number, title, family, "failed", f"{type(failure).__name__}: {failure}")
    return Outcome(number, title, family, "passed")
