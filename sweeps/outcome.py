"""What a sweep leaves: every trial as a row, the best trial or the Pareto front, as files."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.records.derived import csv_cell
from bench.store.atomic import write_atomically
from bench.store.store import Store, write_json
from methods.framework.errors import RecordError
from methods.framework.outside import an_object, read_json
from sweeps.flat import flattened
from sweeps.sweep_config import SweepConfig

if TYPE_CHECKING:
    from optuna import Study
    from optuna.trial import FrozenTrial

CHOICE = "choice.json"
"""File of the choice among the best trials, beside the study."""

FRONT, BEST = "front.json", "best.json"
"""Files that list the front and, of one objective, the best trials; each lists plan files in a folder of its own name."""

MOST_KEPT = 16
"""Best trials of a study whose plan files are kept, unless ``promote`` asks for more."""

STATES = {"COMPLETE": "complete", "PRUNED": "refused", "FAIL": "failed", "RUNNING": "running", "WAITING": "queued"}


LOST = "its worker was lost"
"""Why a trial failed that says nothing itself."""


@dataclass(frozen=True, slots=True)
class TrialRow:
    """One trial.

    Args:
        number: number in the study.
        state: complete, pruned (ended after some windows), refused (by the method or the budget), failed, running or queued.
        reason: why it was refused or failed.
        parameters: what the sampler drew.
        knobs: the method's settings as planned, after the projection onto the budget.
        plan: digest of the plan.
        scores: value of each objective by label.
        sizes: cost by name (see ``methods.framework.cost.Cost``).
        seconds: CPU seconds of measuring; 0 where the scores of an equal plan were taken.
        same_as: number of the earlier trial with the same plan.
        windows: that count, where the objective is measured in stages.
    """

    number: int
    state: str
    reason: str | None = None
    parameters: Mapping[str, Any] = field(default_factory=dict)
    knobs: Mapping[str, Any] = field(default_factory=dict)
    plan: str | None = None
    scores: Mapping[str, float] = field(default_factory=dict)
    sizes: Mapping[str, int] = field(default_factory=dict)
    seconds: float = 0.0
    same_as: int | None = None
    windows: int | None = None

    @classmethod
    def of(cls, trial: FrozenTrial) -> TrialRow:
        """Read a trial of the study."""
        pruned = trial.state.name == "PRUNED" and trial.intermediate_values
        return cls(
            number=trial.number,
            state="pruned" if pruned else STATES[trial.state.name],
            reason=trial.user_attrs.get("reason", LOST if trial.state.name == "FAIL" else None),
            parameters=trial.params,
            **trial.user_attrs.get("result", {}),
        )

    def check(self, labels: Sequence[str]) -> None:
        """Make sure that it holds what a sweep with objectives ``labels`` writes.

        Raises:
            ValueError: something else; or another error of the value that is none.
        """
        numbers = [self.seconds, *self.sizes.values(), *self.scores.values()]
        texts = [text for text in (self.reason, self.plan) if text is not None]
        sound = all(isinstance(number, int | float) for number in numbers) and isinstance(self.same_as, int | None)
        sound = sound and isinstance(self.windows, int | None)
        sound = sound and all(isinstance(text, str) for text in texts) and "/" not in (self.plan or "")
        sound = sound and all(
            isinstance(part, Mapping) for part in (self.parameters, self.knobs, self.scores, self.sizes)
        )
        if self.state == "complete":
            sound = sound and self.plan is not None and self.scores.keys() == set(labels)
        if not sound:
            raise ValueError(f"trial {self.number} holds something else than a sweep writes")


@dataclass(frozen=True, slots=True)
class SweepResult:
    """A study as it stands.

    Args:
        name: name of the sweep.
        folder: holds ``study.journal``, ``trials.csv``, ``front.json`` and the plans of the front.
        rows: all trials, by number.
        front: the best trial, or with several objectives those that no other beats in all; equal plans appear once.
        best: with one objective the best trials of different plans, the best first; with several none.
        origin: what plans of the front have in common as their provenance.
    """

    name: str
    folder: Path
    rows: tuple[TrialRow, ...]
    front: tuple[TrialRow, ...]
    best: tuple[TrialRow, ...] = ()
    origin: Mapping[str, Any] = field(default_factory=dict)

    def count(self, state: str) -> int:
        """Return the number of trials in ``state``."""
        return sum(row.state == state for row in self.rows)


def signs(directions: Mapping[str, str]) -> dict[str, float]:
    """Return the factor of each objective by label with which lower is better."""
    return {label: -1.0 if direction == "maximize" else 1.0 for label, direction in directions.items()}


def best_rows(rows: Sequence[TrialRow], label: str, sign: float, count: int | None = None) -> list[TrialRow]:
    """Return the best complete trials of different plans, the best first and among equals the earlier.

    Args:
        rows: all trials.
        label: the objective that counts.
        sign: -1 where a large value is good.
        count: trials wanted; None: all.
    """
    complete = [row for row in rows if row.state == "complete" and row.same_as is None]
    return sorted(complete, key=lambda row: (sign * row.scores[label], row.number))[:count]


def front(rows: Sequence[TrialRow], directions: Mapping[str, str]) -> tuple[TrialRow, ...]:
    """Return the complete trials that no other dominates, one for each plan; with one objective only the first best."""
    factors = signs(directions)
    if len(factors) == 1:
        return tuple(best_rows(rows, *next(iter(factors.items())), 1))
    points = [
        (row, tuple(factor * row.scores[label] for label, factor in factors.items()))
        for row in rows
        if row.state == "complete" and row.same_as is None
    ]
    return tuple(row for row, mine in points if not any(_dominates(other, mine) for _, other in points))


def outcome(config: SweepConfig, study: Study, store: Path) -> SweepResult:
    """Read the study, write its files, and return it.

    Args:
        config: the sweep.
        study: its study, open.
        store: folder of the store.

    Raises:
        RecordError: the disk refuses, or the file of the choice is damaged.
    """
    folder = config.folder(store)
    rows = tuple(TrialRow.of(trial) for trial in study.get_trials(deepcopy=False))
    directions = dict(zip(config.labels, config.directions, strict=True))
    shown = front(rows, directions)
    best: tuple[TrialRow, ...] = ()
    if len(directions) == 1:
        kept = max(MOST_KEPT, 0 if config.promote is None else config.promote.top or 0)
        best = ranked(rows, directions, folder)[:kept]
        shown = best[:1]
    origin = {"title": config.rule, "budget": {one.of: one.keep for one in config.budget}}
    result = SweepResult(config.name, folder, rows, shown, best, origin)
    write_outcome(result, Store(store).plans)
    return result


def ranked(rows: Sequence[TrialRow], directions: Mapping[str, str], folder: Path) -> tuple[TrialRow, ...]:
    """Return the complete trials of different plans of a study with one objective, the best first.

    Where the best were compared on other text, those come first, the chosen one before all; others follow as they were
    measured in the search.

    Args:
        rows: all trials.
        directions: direction of the objective by its label.
        folder: of the study, with the choice among the best, where there is one.

    Raises:
        RecordError: the file of the choice is damaged.
    """
    ((label, sign),) = signs(directions).items()
    order, choice = best_rows(rows, label, sign), read_choice(folder)
    if choice is None:
        return tuple(order)
    try:
        compared = {int(entry["trial"]): sign * float(entry["choice"]) for entry in choice["trials"]}
        chosen = int(choice["chosen"])
    except (LookupError, TypeError, ValueError) as error:
        raise RecordError(
            f"{folder / CHOICE} is not the choice of a sweep ({type(error).__name__}: {error}); remove it and start the "
            "sweep once more, which makes the choice anew"
        ) from error

    def place(row: TrialRow) -> tuple[bool, bool, float]:
        return row.number != chosen, row.number not in compared, compared.get(row.number, 0.0)

    return tuple(sorted(order, key=place))


def read_choice(folder: Path) -> Mapping[str, Any] | None:
    """Return what the choice among the best trials left in the folder of a study, or None.

    Raises:
        RecordError: the file is damaged.
    """
    path = folder / CHOICE
    return an_object(read_json(path, RecordError), str(path), RecordError) if path.is_file() else None


def _dominates(a: Sequence[float], b: Sequence[float]) -> bool:
    return all(x <= y for x, y in zip(a, b, strict=True)) and any(x < y for x, y in zip(a, b, strict=True))


def write_outcome(result: SweepResult, plans: Path) -> None:
    """Write ``trials.csv``, the front and the best trials, each file in one atomic step.

    ``front.json`` lists the front, ``front/<digest>.json`` are its plans with provenance; ``best`` likewise.

    Args:
        result: the study.
        plans: folder with the plans of all trials by digest.

    Raises:
        RecordError: the disk refuses, or a plan that is listed is not there.
    """
    write_atomically(result.folder / "trials.csv", _csv(result.rows))
    _list(result, FRONT, result.front, plans)
    if result.best:
        _list(result, BEST, result.best, plans)


def _list(result: SweepResult, file: str, rows: Sequence[TrialRow], plans: Path) -> None:
    """Write the plan files of trials into a folder, then the file that lists them; then remove what it does not list."""
    name = Path(file).stem
    listed = []
    for row in rows:
        path = plans / f"{row.plan}.json"
        try:
            plan = json.loads(path.read_text())
        except (OSError, ValueError) as error:
            raise RecordError(
                f"the plan of trial {row.number} cannot be read from {path}: {error}; restore it from a copy, or begin the "
                "study again under another name"
            ) from error
        own = {"sweep": result.name, "trial": row.number, "knobs": row.knobs, "scores": row.scores}
        place = f"{name}/{str(row.plan)[:16]}.json"
        write_json(result.folder / place, {**plan, "provenance": {**result.origin, **own}})
        listed.append({**own, "plan": row.plan, "file": place, "sizes": row.sizes})
    write_json(result.folder / file, {name: listed})
    for path in (result.folder / name).glob("*.json"):
        if f"{name}/{path.name}" not in {entry["file"] for entry in listed}:
            path.unlink(missing_ok=True)


def _csv(rows: Sequence[TrialRow]) -> str:
    """Return one line for each trial; nested values are spread over columns ``group.name``."""
    flat = [{csv_cell(name): csv_cell(value) for name, value in flat_row(row).items()} for row in rows]
    columns = list(dict.fromkeys(column for line in flat for column in line))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(flat)
    return text.getvalue()


def flat_row(row: TrialRow) -> dict[str, Any]:
    """Return a trial as one line of a table; nested values are spread over columns ``group.name``."""
    line: dict[str, Any] = {"trial": row.number, "state": row.state}
    knobs = {name: json.dumps(value) for name, value in row.knobs.items()}
    line |= flattened(score=row.scores, parameter=row.parameters, knob=knobs, size=row.sizes)
    line |= {} if row.windows is None else {"windows": row.windows}
    return line | {"plan": row.plan, "same_as": row.same_as, "seconds": round(row.seconds, 3), "reason": row.reason}
