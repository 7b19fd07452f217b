"""Settings of the choice among the best trials."""

from __future__ import annotations

from typing import Self

from pydantic import Field, model_validator

from bench.settings.strict import Strict
from sweeps.resident import Windows


class Final(Strict):
    """Text that the search does not see: one set to choose among its best trials, another to say how good the choice is."""

    choose: Windows | None = Field(
        default=None, description="windows on which the best trials are compared; None: no choice"
    )
    top: int = Field(default=8, ge=1, description="best trials of the search that are compared")
    report: Windows | None = Field(
        default=None,
        description="windows on which the choice is measured beside the first start and the uncompressed model",
    )

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.report is not None and self.choose is None:
            raise ValueError("report needs choose: what is reported is the trial that was chosen")
        return self
