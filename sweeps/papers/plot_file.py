"""What a figure shows beside tables and curves of a mean, as data: which kind of drawing, and what it is made of."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import Field, model_validator

from bench.settings.strict import Strict

Draws = Literal["tasks", "loss", "lengths", "dropped", "gone", "scores", "importance", "likeness", "across"]
"""Kinds of drawing:

- ``tasks``: the series of the figure, a panel for each task.
- ``loss``: the series of the figure, negative log-likelihood instead of accuracy.
- ``lengths``: decode speed of each row against that of the uncompressed model, by the length of prompt and answer.
- ``dropped``: a map of layers and experts, each with the share at which it goes; one panel for each series.
- ``gone``: a map of decoder layers and of how many are dropped, with those that go; a row of panels for each method.
- ``scores``: how a method's scores of experts are distributed, with the shares at which they go.
- ``importance``: a method's scores of experts as a map, and their sum in each layer.
- ``likeness``: how alike the experts of each layer are.
- ``across``: how alike the weights of experts of all layers are.
"""

_NEEDS: dict[str, tuple[str, ...]] = {
    "loss": ("task", "pocket_task"),
    "lengths": ("lengths", "pocket_lengths"),
    "gone": ("counts",),
    "scores": ("method",),
    "importance": ("method",),
    "likeness": ("statistic",),
}
"""Fields that a kind of drawing cannot do without."""


class CountsFile(Strict):
    """A method that drops layers, and how many."""

    label: str = Field(min_length=1)
    method: str = Field(description="with $keep for the share that remains")
    total: str | int = Field(description="layers that it may drop, a number or $word")
    most: str | int = Field(description="the largest number that is dropped, a number or $word")


class PlotFile(Strict):
    """What a figure is made of, where it is no mean of tasks along one axis."""

    draws: Draws
    y: str = Field(default="", description="words on the vertical axis, or beside the scale of colours")
    method: str | None = Field(
        default=None, description="scores, importance: method whose scores of experts are shown, with its knobs"
    )
    statistic: Literal["output_cka", "output_cosine", "weight_cka"] | None = Field(
        default=None, description="likeness: statistic that compares every two experts of a layer"
    )
    counts: tuple[CountsFile, ...] = Field(default=(), description="gone: methods that drop layers, from one to `most`")
    task: str | None = Field(default=None, description="loss: task that scores running text")
    pocket_task: str | None = Field(default=None, description="the same where pocket models are measured")
    lengths: tuple[int, ...] = Field(default=(), description="lengths: tokens of a prompt, and as many generated")
    pocket_lengths: tuple[int, ...] = Field(default=(), description="the same where pocket models are measured")
    timing: dict[str, Any] = Field(default={}, description="lengths: settings of the timing beside its lengths")
    pocket_timing: dict[str, Any] = Field(default={}, description="the same where pocket models are measured")

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if missing := [name for name in _NEEDS.get(self.draws, ()) if not getattr(self, name)]:
            raise ValueError(f"a plot that draws {self.draws} states {', '.join(missing)}")
        return self

    @property
    def reads_text(self) -> bool:
        """Whether it shows statistics that are measured on a text."""
        return self.draws in ("scores", "importance", "gone") or self.statistic in ("output_cka", "output_cosine")
