"""After how many windows a trial may be ended, and who decides."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from bench.settings.strict import Strict
from sweeps.objective import Objective, TextObjective


class Stages(Strict):
    """After how many windows a trial may be ended, and who decides."""

    windows: tuple[Annotated[int, Field(ge=1)], ...] = Field(
        default=(4, 8),
        min_length=1,
        description="windows measured before the pruner is asked, ascending; all others follow",
    )
    pruner: Literal["wilcoxon", "median", "none"] = Field(
        default="wilcoxon",
        description="wilcoxon: worse than the best trial, window by window; median: worse than half of the complete trials",
    )
    p: float = Field(default=0.1, gt=0, lt=1, description="of wilcoxon: level of the one-sided test")
    startup: int = Field(default=5, ge=1, description="of median: complete trials before the first is ended")

    @model_validator(mode="after")
    def _ascending(self) -> Self:
        if any(a >= b for a, b in pairwise(self.windows)):
            raise ValueError(f"windows ascend, each more than the one before; found {list(self.windows)}")
        # The smallest level that n pairs can reach is 2 ** -n: all of them worse.
        if self.pruner == "wilcoxon" and 2.0 ** -self.windows[-1] >= self.p:
            raise ValueError(
                f"{self.windows[-1]} windows cannot tell anything at the level {self.p}, even where all are worse; give "
                "more windows, or a larger p"
            )
        return self

    def check(self, objectives: Sequence[Objective]) -> None:
        """Check that the one objective has windows beyond the last stage.

        Raises:
            ValueError: it has not, or is not on text, or there are several.
        """
        if len(objectives) > 1 or not isinstance(objectives[0], TextObjective):
            raise ValueError("stages need one objective on text: nll, perplexity, kl or esap")
        one = objectives[0]
        windows = one.calibration_sequences if one.held_out is None else one.held_out.sequences
        if self.windows[-1] >= windows:
            raise ValueError(
                f"stages.windows: the objective has {windows} windows, so none is left after {self.windows[-1]}; give fewer"
            )
