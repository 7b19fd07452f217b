"""Plan files: a result that is decided already, so that a run only writes and measures it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, TypeAlias

from pydantic import BaseModel, ConfigDict, ValidationError

from bench.records.record import FoundBy
from bench.running.recipe import Recipe
from methods.framework.errors import PlanError
from methods.framework.inventory import Inventory
from methods.framework.method import Method
from methods.framework.outside import parse_json, read_bytes
from methods.framework.plan import Plan
from methods.framework.wording import wording
from methods.registry import method_class, names


class _Origin(BaseModel):
    """What a plan file may say about where it comes from, as far as tables and records show it."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    title: str | None = None
    method: str | None = None
    knobs: dict[str, Any] = {}
    sweep: str | None = None
    trial: int | None = None
    scores: dict[str, float] = {}
    budget: dict[str, float] = {}

    @property
    def rule(self) -> str | None:
        """Title of what decided, where that is known."""
        if self.title is None and self.method in names():
            return method_class(str(self.method)).title
        return self.title or self.method

    @property
    def found_by(self) -> FoundBy | None:
        """The study that found the plan, None where none did."""
        if self.sweep is None:
            return None
        return FoundBy(study=self.sweep, trial=self.trial, scores=self.scores, budget=self.budget)


@dataclass(frozen=True)
class Planned:
    """A plan that was read from a file; it stands where a run takes a method.

    Args:
        title: name for tables.
        decided: the plan, in its normal form.
        knobs: settings of what decided, empty where the file does not tell.
        found_by: the study that found it, None where the file names none.
        provenance: all that the file says about where the plan comes from.
    """

    name: ClassVar[str] = "plan"
    probing: ClassVar[bool] = False
    anew: ClassVar[bool] = False
    needs: ClassVar[frozenset[str]] = frozenset()

    title: str
    decided: Plan
    knobs: Mapping[str, Any] = field(default_factory=dict)
    found_by: FoundBy | None = None
    provenance: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path, inventory: Inventory) -> Planned:
        """Read a plan file for the model of ``inventory``.

        Raises:
            PlanError: the file is missing or holds something else, or the plan is for another model.
        """
        text = read_bytes(path, PlanError)
        plan = Plan.loads(text)
        try:
            plan = plan.normalised(inventory)
        except PlanError as error:
            raise PlanError(
                f"{path} is a plan for another model: {error}; name the model that it was made for"
            ) from error
        stated = parse_json(text, str(path), PlanError).get("provenance", {})
        try:
            origin = _Origin.model_validate(stated)
        except ValidationError as error:
            told = wording(error, stated, "provenance")
            raise PlanError(f"{path}: {told}; mend the entry, or leave it out") from error
        return cls(_title(origin, plan.digest), plan, origin.knobs, origin.found_by, stated)

    @property
    def stages(self) -> frozenset[str]:
        """Plan stages that it states."""
        return self.decided.stages

    @property
    def measured(self) -> frozenset[str]:
        """Statistics whose values are written."""
        return self.decided.moments


Compression: TypeAlias = Method | Recipe | Planned
"""What a run can make of a model."""


def _title(origin: _Origin, digest: str) -> str:
    short = digest[:8]
    rule, found = origin.rule, origin.found_by
    if found is None:
        return f"Plan {short}" if rule is None else f"{rule} (plan {short})"
    where = f"sweep {found.study}" + ("" if found.trial is None else f", trial {found.trial}")
    return f"{rule or f'Plan {short}'} ({where})"
