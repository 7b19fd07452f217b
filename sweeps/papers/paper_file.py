"""What a paper is, as data: its models, its columns, its settings, and for each table or figure what is run and drawn.

A folder of ``sweeps/papers`` is a paper: ``paper.yaml`` and one file for each table or figure. Text with ``$word`` takes the word
of the model it stands for, so that one row serves models of unlike group sizes, ranks and numbers of layers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, Self, TypeAlias

from pydantic import Field, model_validator

from bench.settings.recovery import RecoverySettings
from bench.settings.stage_settings import CalibrationConfig
from bench.settings.strict import Strict
from sweeps.papers.plot_file import PlotFile

Word: TypeAlias = str | int | float
Mark = Literal["first-hand", "quoted", "derived", "lost"]
"""How the number of a row is known: read in the paper, printed by somebody else, computed from other numbers, or in no copy."""


class PaperModel(Strict):
    """One model of a paper, and its stand-in among the pocket models."""

    title: str = Field(min_length=1, description="as the paper calls it")
    hub: str = Field(description="hub id")
    families: tuple[str, ...] = Field(min_length=1, description="family files that a model given with --model may have")
    parameters: float = Field(gt=0, description="all weights, in thousands of millions")
    active: float = Field(gt=0, description="weights used for one token, in thousands of millions")
    words: dict[str, Word] = Field(default={}, description="what $word stands for")
    pocket: str | None = Field(default=None, description="pocket model in its place; None: there is none")
    no_pocket: str | None = Field(default=None, description="why no pocket model can stand in its place")
    pocket_words: dict[str, Word] = Field(default={}, description="words of the pocket model, where they differ")

    def known_words(self, pocket: bool) -> dict[str, Word]:
        """Return the words of the model, or of its stand-in."""
        return self.words | (self.pocket_words if pocket else {})


class ColumnFile(Strict):
    """One column of a table: a task, a mean of tasks, or what a model costs."""

    title: str = Field(min_length=1, description="head of the column")
    kind: Literal["task", "mean", "speedup", "tflops", "gib"] = "task"
    task: str | None = Field(default=None, description="lm-eval task; None: the name of the column")
    published: str | None = Field(
        default=None, description="column of the published file; None: the name of the column"
    )
    of: tuple[str, ...] = Field(default=(), description="mean: columns that it is formed of, all of the same weight")
    digits: int = Field(default=1, ge=0, le=4, description="decimals that the paper prints")

    @model_validator(mode="after")
    def _sound(self) -> Self:
        if (self.kind == "mean") != bool(self.of):
            raise ValueError("a mean, and nothing else, states the columns that it is formed `of`")
        return self


class Protocol(Strict):
    """How the paper evaluates."""

    num_fewshot: int | None = Field(default=0, ge=0, description="examples before a question; None: what the task says")
    metrics: tuple[str, ...] = Field(default=("acc_norm", "acc"), min_length=1, description="the preferred first")
    dtype: Literal["float32", "bfloat16", "float16"] = "bfloat16"
    max_length: int | None = Field(default=None, ge=2, description="context window; None: the model's")


class Instead(Strict):
    """What is run where a row's own method is not there yet."""

    method: str | None = None
    steps: tuple[str, ...] = ()
    departs: str = Field(min_length=1, description="how it differs from the paper")


class RowFile(Strict):
    """One row: what is done to the model, and where its published numbers stand."""

    label: str = Field(min_length=1, description="as the paper writes it, in short")
    published: dict[str, Word] = Field(default={}, description="columns of the published file that select its row")
    table: str | None = Field(default=None, description="published file, where it is not that of the table")
    mark: Mark = "first-hand"
    method: str | None = Field(default=None, description="name:knob=value,...; None and no steps: the model as it is")
    steps: tuple[str, ...] = Field(
        default=(), description="methods one after the other, each on what those before leave"
    )
    recalibrate: bool = Field(default=True, description="steps after the first measure anew")
    calibration: dict[str, Word] = Field(default={}, description="what differs from the paper's calibration")
    recovery: RecoverySettings | None = Field(default=None, description="training of the result")
    instead: Instead | None = None
    models: tuple[str, ...] = Field(default=(), description="models that have the row; none stated: all")
    unavailable: str | None = Field(default=None, description="why nothing of ours can stand here")
    departs: str | None = Field(default=None, description="how the row here differs from the paper's")

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        if self.method is not None and self.steps:
            raise ValueError("state a method, or steps, not both")
        return self


class Points(Strict):
    """Places on the horizontal axis of a curve: so many units are dropped."""

    total: Word = Field(description="units of the model, a number or $word")
    step: Word = 1
    most: Word = Field(description="the last place")


class SeriesFile(Strict):
    """One line of a curve."""

    label: str = Field(min_length=1)
    method: str = Field(description="with $keep for the share that remains")


class TextPointFile(Strict):
    """A point of a curve that the paper tells in its text: a row of the exhibit's published file."""

    model: str = Field(description="of paper.yaml")
    series: str = Field(description="label of its line")
    share: float = Field(gt=0, lt=1, description="of the parts that are dropped")
    setting: str = Field(description="of the published row")
    quantity: str = Field(description="of the published row")


class StatisticFile(Strict):
    """A statistic that a figure shows, on one text."""

    label: str = Field(min_length=1, description="of its line")
    pocket_label: str | None = Field(default=None, description="the same where pocket models are measured")
    name: str = Field(description="of the catalogue: a number of each layer, or a matrix of two places in the depth")
    panel: str = Field(default="", description="lines of one panel share it")
    scaled: bool = Field(default=False, description="smallest value 0, largest 1")
    calibration: dict[str, Word] = Field(default={}, description="what differs from the paper's calibration")
    pocket_calibration: dict[str, Word] = Field(default={}, description="the same where pocket models are measured")


class Exhibit(Strict):
    """One table or figure."""

    kind: Literal["table", "curve", "profile", "matrix", "plot", "told"]
    title: str = Field(min_length=1, description="what it shows, in our words")
    models: tuple[str, ...] = Field(default=(), description="of paper.yaml, in the order of the paper")
    published: str | None = Field(default=None, description="file of analysis/published")
    columns: tuple[str, ...] = ()
    rows: tuple[RowFile, ...] = ()
    series: tuple[SeriesFile, ...] = ()
    points: Points | None = None
    text_points: tuple[TextPointFile, ...] = Field(default=(), description="of a curve, told in the paper's text")
    statistics: tuple[StatisticFile, ...] = ()
    plot: PlotFile | None = Field(default=None, description="what else a figure may show")
    x: str = Field(default="", description="words on the horizontal axis")
    y: str = Field(default="", description="words on the vertical axis, or beside the scale of colours")
    departs: tuple[str, ...] = Field(default=(), description="how it differs from the paper whatever the model")
    lost: tuple[str, ...] = Field(default=(), description="what no copy of the paper tells")
    untold: tuple[str, ...] = Field(default=(), description="what the paper leaves open, what is taken, and why")

    @model_validator(mode="after")
    def _complete(self) -> Self:
        needed: Mapping[str, tuple[str, ...]] = {
            "table": ("models", "columns", "rows"),
            "curve": ("models", "series", "points"),
            "profile": ("models", "statistics"),
            "matrix": ("models", "statistics"),
            "plot": ("models", "plot"),
            "told": ("lost",),
        }
        if missing := [name for name in needed[self.kind] if not getattr(self, name)]:
            raise ValueError(f"a {self.kind} states {', '.join(missing)}")
        return self


class CutFile(Strict):
    """How a label tells what goes: a letter, how many parts, and of how many."""

    letter: str
    part: Literal["experts", "layers", "blocks"]
    keep: str = Field(description="word of the share that remains")


class PaperFile(Strict):
    """One paper."""

    title: str = Field(min_length=1)
    source: str = Field(min_length=1, description="where it is printed")
    models: dict[str, PaperModel]
    columns: dict[str, ColumnFile]
    calibration: CalibrationConfig
    protocol: Protocol = Protocol()
    steps: dict[Literal["experts", "layers", "blocks"], tuple[str, ...]] = Field(
        default={}, description="words that count parts of a model, by the word of all of them"
    )
    cuts: dict[str, CutFile] = Field(default={}, description="words that tell how many parts go")
    departs: tuple[str, ...] = Field(default=(), description="how all of it differs from the paper here")
    untold: tuple[str, ...] = Field(
        default=(), description="settings that the paper does not tell, what is taken, and why"
    )
