"""Runs every law on one method and every tiny architecture, and says what happened."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

from bench.laws import decisions, realised
from bench.laws.cases import Case
from bench.laws.composition import composition
from bench.laws.elsewhere import purity_across_processes
from bench.models.tiny import FAMILIES, RUNNABLE
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
    (9, composition),
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


def in_full(cls: type[Method]) -> type[Method]:
    """Return ``cls`` as the laws try it with all the steps and experts that it has by default."""
    own = {"law_knobs": Method.law_knobs, "law_experts": Method.law_experts, "__module__": cls.__module__}
    return type(cls.__name__, (cls,), own)


def check(name: str, families: tuple[str, ...] = (), full: bool = False) -> Iterator[Outcome]:
    """Yield the outcome of each law for a method.

    Args:
        name: the method's name.
        families: tiny architectures; by default those on which every method is tried.
        full: try it with its default settings, not with those that it declares for the laws.
    """
    own = method_class(name)
    cls = in_full(own) if full else own
    yield _outcome(12, "applies_somewhere", "all", lambda: decisions.applies_somewhere(cls))
    chosen = [family for family in (RUNNABLE if families else FAMILIES) if not families or family in families]
    for position, family in enumerate(chosen):
        case = decisions.case_for(cls, family)
        for number, law in LAWS:
            yield _outcome(number, law.__name__, family, _bind(law, cls, case))
        if position == 0:
            across = _bind(purity_across_processes, own, case)
            yield _outcome(1, "purity_across_processes", family, across)


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
