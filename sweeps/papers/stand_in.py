"""Which model stands where a paper has its own, and under which settings it is measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.settings.stage_settings import CalibrationConfig, EvaluationConfig
from bench.settings.strict import validated
from methods.framework.errors import ConfigError, UnknownNameError
from sweeps.papers.fitted import Shape, fitted_words
from sweeps.papers.paper_file import Exhibit, PaperFile, PaperModel, Word
from sweeps.papers.shelf import Paper, pocket_settings

POCKET = "pocket"
"""Name of a model that asks for the pocket model in the place of each of the paper's."""


@dataclass(frozen=True)
class StandIn:
    """A model that is measured in the place of one of a paper's.

    Args:
        key: of the paper's model in ``paper.yaml``.
        paper: the paper's model.
        model: folder, hub id or pocket model that is measured; None where there is none.
        pocket: whether it is a pocket model.
        own: words that differ from those of the paper's model.
    """

    key: str
    paper: PaperModel
    model: str | None
    pocket: bool
    own: Mapping[str, Word] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """How it is called here: a folder by its own name, also where it is a link."""
        return Path(self.model).name if self.model else ""

    @property
    def words(self) -> Mapping[str, Word]:
        """What $word stands for."""
        return self.paper.known_words(self.pocket) | dict(self.own)

    @property
    def recorded(self) -> str:
        """How records call it: as the folder that a link leads to."""
        folder = Path(self.model or "")
        return folder.resolve().name if self.model and folder.is_dir() else self.name


def stand_ins(
    paper: PaperFile,
    exhibit: Exhibit,
    model: str,
    place: str | None,
    family: str | None,
    shape: Shape | None = None,
) -> list[StandIn]:
    """Return the models of a table or figure, in its order.

    Args:
        paper: the paper.
        exhibit: its table or figure.
        model: ``pocket``, or what is measured.
        place: key of the paper's model that ``model`` stands for, or several with commas between, of which the first that
            the table has counts; None: by its family.
        family: family file of ``model``, None where it is ``pocket``.
        shape: of ``model``; None: as that of the paper's model.

    Raises:
        UnknownNameError: no model of the table is called ``place``.
        ConfigError: no model of the table is of that family, or several are.
    """
    if model == POCKET:
        return [StandIn(key, paper.models[key], paper.models[key].pocket, True) for key in exhibit.models]
    places = place.split(",") if place else []
    if unknown := [key for key in places if key not in paper.models]:
        raise UnknownNameError("model of this paper", unknown[0], paper.models)
    known = [key for key in places if key in exhibit.models]
    if places and not known:
        raise UnknownNameError("model of this table or figure", places[0], exhibit.models)
    fitting = known[:1] or [key for key in exhibit.models if family in paper.models[key].families]
    if len(fitting) != 1:
        shown = ", ".join(f"{key} ({' or '.join(paper.models[key].families)})" for key in exhibit.models)
        raise ConfigError(
            f"cannot tell which of the paper's models {model} stands for: its family is {family}, the paper has {shown}; "
            "name one with --place"
        )
    (key,), pocket = fitting, model.startswith("pocket-")
    own = {} if pocket or shape is None else fitted_words(paper, key, shape)
    return [StandIn(key, paper.models[key], model, pocket, own)]


@dataclass(frozen=True)
class Conditions:
    """Settings that all rows of a table share.

    Args:
        calibration: of rows that state nothing else.
        evaluation: tasks and how they are scored.
        own_tasks: whether the tasks are the paper's.
        differences: how the settings differ from the paper's, in words.
        other_text: whether the text is another than the paper's, so that rows with a text of their own take it, too.
        texts: that a user gave in the place of those of single lines of a figure, by the label of the line.
    """

    calibration: CalibrationConfig
    evaluation: EvaluationConfig
    own_tasks: bool
    differences: tuple[str, ...]
    other_text: bool = False
    texts: Mapping[str, str] = field(default_factory=dict)


def task_columns(paper: PaperFile, exhibit: Exhibit) -> list[str]:
    """Return the columns that hold tasks, also those that only a mean needs; of a curve those of the paper's mean."""
    columns = list(exhibit.columns) or ["avg"] * ("avg" in paper.columns)
    names: list[str] = []
    for name in columns:
        column = paper.columns[name]
        names += [name] if column.kind == "task" else list(column.of)
    return list(dict.fromkeys(names))


def conditions(paper: Paper, exhibit: Exhibit, pocket: bool, given: Mapping[str, Any]) -> Conditions:
    """Return the paper's settings, those of pocket models in their place, and what a user gave in the place of both.

    Args:
        paper: the paper.
        exhibit: its table or figure.
        pocket: whether pocket models are measured.
        given: ``calibration`` and ``evaluation``, each with the fields that a user gave.

    Raises:
        ConfigError: a field that was given is not allowed.
    """
    file = paper.file
    columns = task_columns(file, exhibit)
    tasks = tuple(dict.fromkeys(file.columns[name].task or name for name in columns))
    theirs: dict[str, dict[str, Any]] = {
        "calibration": file.calibration.model_dump(),
        "evaluation": {"tasks": tasks, **file.protocol.model_dump(exclude={"metrics"}), "limit": None},
    }
    ours = {part: dict(values) for part, values in theirs.items()}
    if pocket:
        here = pocket_settings()
        ours["calibration"] |= here.calibration.model_dump(exclude_unset=True)
        ours["evaluation"] |= {"tasks": here.tasks if tasks else (), "limit": here.limit, "dtype": here.dtype}
        ours["evaluation"]["max_length"] = None
    for part, values in given.items():
        ours[part] |= values
    calibration = validated(ours["calibration"], CalibrationConfig, "calibration")
    evaluation = validated(ours["evaluation"], EvaluationConfig, "evaluation")
    own = tuple(name.removesuffix("_local") for name in evaluation.tasks) == tasks
    settled = {"calibration": calibration.model_dump(), "evaluation": evaluation.model_dump()}
    other = calibration.corpus != file.calibration.corpus
    return Conditions(calibration, evaluation, own, tuple(_differences(theirs, settled)), other)


_TOLD = {
    "calibration": ("corpus", "sequences", "length"),
    "evaluation": ("tasks", "num_fewshot", "limit", "dtype"),
}


def _differences(theirs: Mapping[str, Mapping[str, Any]], ours: Mapping[str, Mapping[str, Any]]) -> Sequence[str]:
    told = []
    for part, names in _TOLD.items():
        for name in names:
            paper, here = theirs[part].get(name), ours[part].get(name)
            if paper != here:
                told.append(f"{part}.{name}: {_text(here)}; the paper: {_text(paper)}.")
    return told


def _text(value: Any) -> str:
    if value is None:
        return "as it is"
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
