"""Rows of a table, or points of a curve, as what is run: methods, recipes and trainings with a model's words filled in."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from string import Template
from typing import Any

from bench.settings.method_settings import MethodConfig, RecipeConfig, StepConfig, parse_method
from bench.settings.recovery import RecoverySettings
from bench.settings.stage_settings import CalibrationConfig
from bench.settings.strict import validated
from methods.framework.errors import ConfigError
from sweeps.papers.paper_file import Exhibit, Mark, PaperFile, Points, RowFile, Word
from sweeps.papers.shelf import pocket_settings
from sweeps.papers.stand_in import Conditions, StandIn

RECIPE = "recipe"
"""How records call several methods one after the other."""


@dataclass(frozen=True)
class Asked:
    """One row, as it is run.

    Args:
        label: with the words of the model that is measured.
        printed_label: with those of the paper's model.
        compression: a method or a recipe; None for the model as it is.
        calibration: text of the statistics.
        recovery: training of the result.
        published: columns of the published file that select its row, the model's name among them.
        table: the published file; None: the paper prints nothing.
        mark: how the published numbers are known.
        reason: why it is not run; None: it is.
        departs: how it differs from the paper's.
        x: place on the horizontal axis of a curve.
    """

    label: str
    compression: MethodConfig | RecipeConfig | None
    calibration: CalibrationConfig
    recovery: RecoverySettings | None = None
    published: Mapping[str, Word] | None = None
    table: str | None = None
    mark: Mark = "first-hand"
    reason: str | None = None
    departs: tuple[str, ...] = ()
    x: float | None = None
    printed_label: str = ""

    @property
    def is_base(self) -> bool:
        """Whether it is the model as it is."""
        return self.compression is None and self.reason is None

    @property
    def method(self) -> str | None:
        """How a record calls what is done."""
        if isinstance(self.compression, RecipeConfig):
            return RECIPE
        return None if self.compression is None else self.compression.name

    @property
    def knobs(self) -> dict[str, Any]:
        """What a record states as knobs, in full and as JSON values, without seeds."""
        found: dict[str, Any] = {}
        if isinstance(self.compression, RecipeConfig):
            for number, step in enumerate(self.compression.steps, 1):
                own = {**step.configured().knobs, "recalibrate": step.recalibrate}
                found |= {f"{number}.{step.name}.{knob}": value for knob, value in own.items()}
        elif self.compression is not None:
            found = dict(self.compression.configured().knobs)
        if self.recovery is not None:
            training = self.recovery.model_dump(mode="json", exclude_defaults=True)
            found |= {f"recovery.{name}": value for name, value in training.items()}
        return without_seeds(found)


def without_seeds(knobs: Mapping[str, Any]) -> dict[str, Any]:
    """Return knobs as JSON values, without the seed of a method's draws, over which runs are averaged."""
    kept = {name: value for name, value in knobs.items() if name.split(".")[-1] != "seed"}
    read: dict[str, Any] = json.loads(json.dumps(kept))
    return read


def asked(paper: PaperFile, exhibit: Exhibit, one: StandIn, settings: Conditions) -> list[Asked]:
    """Return all rows of a table, or the points of all series of a curve, for one model.

    Args:
        paper: the paper.
        exhibit: its table or figure.
        one: the model.
        settings: of rows that state nothing else.

    Raises:
        ConfigError: a word that the model does not have.
    """
    rows = [row for row in exhibit.rows if not row.models or one.key in row.models]
    found = [_asked(row, exhibit, one, settings) for row in rows]
    if exhibit.points is not None:
        found.append(Asked("Baseline", None, settings.calibration, x=0.0, reason=_no_model(one)))
        for series in exhibit.series:
            for x, keep in places(exhibit.points, one):
                method = filled(series.method, {**one.words, "keep": f"{keep:.6g}"})
                row = RowFile(label=series.label, method=method)
                own = _asked(row, exhibit, one, settings)
                found.append(Asked(own.label, own.compression, own.calibration, reason=own.reason, x=x))
    return found


def places(points: Points, one: StandIn) -> list[tuple[int, float]]:
    """Return the places of a curve, each with the share that remains."""
    total, step, most = (int(filled(str(value), one.words)) for value in (points.total, points.step, points.most))
    return [(x, 1 - x / total) for x in range(step, most + 1, step)]


def filled(text: str, words: Mapping[str, Word]) -> str:
    """Return ``text`` with each $word replaced.

    Raises:
        ConfigError: a word that is not there.
    """
    try:
        return Template(text).substitute({name: str(value) for name, value in words.items()})
    except (KeyError, ValueError) as error:
        raise ConfigError(
            f"{text!r}: {error} is no word of the model; known: {', '.join(sorted(words)) or 'none'}"
        ) from error


def _no_model(one: StandIn) -> str | None:
    if one.model:
        return None
    why = f": {one.paper.no_pocket}" if one.paper.no_pocket else ""
    return f"no pocket model stands for {one.paper.title}{why}"


def _asked(row: RowFile, exhibit: Exhibit, one: StandIn, settings: Conditions) -> Asked:
    words = one.words
    theirs = one.paper.known_words(False)
    label = filled(row.label, words)
    steps = (row.method,) if row.method is not None else row.steps
    reason = row.unavailable or _no_model(one)
    departs = [row.departs] if row.departs else []
    compression = None
    if steps and reason is None:
        compression, problem = _compression(label, steps, row.recalibrate, words)
        if problem and row.instead is not None:
            other = (row.instead.method,) if row.instead.method is not None else row.instead.steps
            compression, reason = _compression(label, other, row.recalibrate, words)
            departs.append(row.instead.departs)
        elif problem:
            reason = problem
    calibration = settings.calibration
    if row.calibration:
        theirs_read = validated({**calibration.model_dump(), **row.calibration}, CalibrationConfig, row.label)
        if one.pocket or settings.other_text:
            departs.append(f"calibrated on the text of the other rows; the paper: {theirs_read.corpus}")
        else:
            calibration = theirs_read
    published = {
        name: filled(value, theirs) if isinstance(value, str) else value for name, value in row.published.items()
    }
    return Asked(
        label,
        compression,
        calibration,
        _recovery(row, one, settings),
        {"model": one.paper.title, **published} if published else None,
        row.table or exhibit.published,
        row.mark,
        reason,
        tuple(departs),
        printed_label=filled(row.label, theirs),
    )


def _compression(
    label: str, steps: Sequence[str | None], recalibrate: bool, words: Mapping[str, Word]
) -> tuple[MethodConfig | RecipeConfig | None, str | None]:
    """Return what is run, or why it cannot be."""
    methods = [parse_method(filled(step, words)) for step in steps if step is not None]
    try:
        for method in methods:
            method.configured()
    except ConfigError as error:
        return None, f"not yet possible: {error}"
    if len(methods) == 1:
        return methods[0], None
    own = tuple(
        StepConfig(name=method.name, knobs=method.knobs, recalibrate=recalibrate and place > 0)
        for place, method in enumerate(methods)
    )
    return RecipeConfig(title=label, steps=own), None


def _recovery(row: RowFile, one: StandIn, settings: Conditions) -> RecoverySettings | None:
    if row.recovery is None or not one.pocket:
        return row.recovery
    stated = row.recovery.model_dump(exclude_unset=True)
    kept = {name: value for name, value in stated.items() if name in ("kind", "rank", "alpha", "experts")}
    return validated({**kept, **pocket_settings().recovery}, RecoverySettings, row.label)
