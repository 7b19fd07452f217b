"""A table of a paper as it is laid out: columns, rows, and for each row which run stands for it and what the paper prints."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Kind = Literal["task", "perplexity", "mean", "speedup", "tflops", "gib"]


@dataclass(frozen=True)
class Column:
    """One column.

    Args:
        name: also of the published file's column.
        title: its head.
        task: lm-eval task of a task's column, or of one with the perplexity of a word.
        of: names of the columns that a mean is formed of.
        digits: decimals that the paper prints.
    """

    name: str
    title: str
    kind: Kind = "task"
    task: str = ""
    of: tuple[str, ...] = ()
    digits: int = 1


@dataclass(frozen=True)
class Line:
    """One row.

    Args:
        method: registry name, ``recipe``, or None for the model as it is.
        knobs: in full, as JSON values, without seeds.
        stated: names of the knobs that differ from the method's defaults, and of all settings of a training.
        published: numbers of the paper by column, scores in percent; empty where it prints none.
        mark: how these are known.
        reason: why nothing was run; None: it was.
        corpus: name of the text that the row asks for, and how many windows of it.
        x: place on the horizontal axis of a curve.
        printed_label: as the paper calls it; empty: as ``label``.
    """

    label: str
    method: str | None = None
    knobs: Mapping[str, Any] = field(default_factory=dict)
    stated: frozenset[str] = frozenset()
    published: Mapping[str, float] = field(default_factory=dict)
    mark: str = "first-hand"
    reason: str | None = None
    corpus: tuple[str, int] | None = None
    x: float | None = None
    printed_label: str = ""

    @property
    def both(self) -> str:
        """The label, and the paper's where it is another."""
        other = self.printed_label
        return self.label if other in ("", self.label) else f"{self.label} (printed: {other})"


@dataclass(frozen=True)
class Block:
    """The rows of one model.

    Args:
        title: the paper's model.
        model: the one that was measured; empty where none was.
        columns: of what was measured.
        paper_columns: of what the paper prints.
        metrics: admitted metrics of a task, the preferred first.
        chance: mean of what guessing scores in the tasks that were measured, in percent; None where that is not known.
        recorded: how records call ``model``; empty: so, too.
    """

    title: str
    model: str
    columns: tuple[Column, ...]
    paper_columns: tuple[Column, ...]
    lines: tuple[Line, ...]
    metrics: tuple[str, ...] = ("acc_norm", "acc")
    chance: float | None = None
    recorded: str = ""

    @property
    def comparable(self) -> bool:
        """Whether both sides have the same columns, so that cells may be compared one by one."""
        return self.columns == self.paper_columns

    def mean(self, paper: bool) -> Column | None:
        """Return the column of the mean, of what the paper prints or of what was measured."""
        columns = self.paper_columns if paper else self.columns
        return next((column for column in columns if column.kind == "mean"), None)


@dataclass(frozen=True)
class TextPoint:
    """A point of a curve that the text tells in words.

    Args:
        model: the paper's, by its title.
        series: label of the line.
        x: the place on the horizontal axis here that has the same share of what is dropped.
        words: what the text tells of what.
        printed: the value, as the text has it.
    """

    model: str
    series: str
    x: float
    words: str
    printed: str


@dataclass(frozen=True)
class Sheet:
    """One table.

    Args:
        name: ``holistic table-3``.
        title: what it shows.
        source: where it is printed.
        departs: how it differs from the paper, in sentences.
        lost: what no copy of the paper tells, in sentences.
        untold: settings that the paper leaves open, in sentences.
        small: whether small models of another language stand for the paper's.
        said: sentences that stand elsewhere on the page, and are not repeated.
        beside: the model that was measured, where the same table of other models stands above; then no more is told than
            what that one gave.
        told: points of a curve that the text tells.
    """

    name: str
    title: str
    source: str
    blocks: tuple[Block, ...]
    departs: tuple[str, ...] = ()
    lost: tuple[str, ...] = ()
    untold: tuple[str, ...] = ()
    small: bool = False
    said: frozenset[str] = frozenset()
    beside: str = ""
    told: tuple[TextPoint, ...] = ()
