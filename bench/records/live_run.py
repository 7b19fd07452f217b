"""A run of W&B that is open while its row is worked on: stages, progress and losses as they come."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_EVERY = 1.0
"""Seconds between two points of one stage's progress; losses of a training are all kept."""
_COUNTED = re.compile(r"(?P<stage>\w+)(?: (?P<what>\S+))? (?P<done>\d+)/(?P<total>\d+)(?: loss (?P<loss>\d[\d.e+-]*))?")


@dataclass
class LiveRun:
    """An open run.

    Args:
        run: W&B's own.
        folder: where its file lies.
    """

    run: Any
    folder: Path
    _stage: str = ""
    _told: float = float("-inf")
    _stages: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, run: Any) -> LiveRun:
        """Wrap a run that was just begun, and say against which axes its numbers are drawn."""
        run.define_metric("recovery/step", hidden=True)
        run.define_metric("recovery/loss", step_metric="recovery/step")
        return cls(run, Path(run.settings.sync_dir))

    def tell(self, stage: str) -> None:
        """Note the stage that the row is in, as a run reports it: a word, perhaps a task, done/total and loss."""
        numbers = numbers_of(stage)
        word, now = stage.partition(" ")[0], time.monotonic()
        if word == self._stage and "recovery/loss" not in numbers and now < self._told + _EVERY:
            return
        if word != self._stage:
            self._stages.append(word)
            numbers["stage_number"] = len(self._stages)
        self._stage, self._told = word, now
        self.run.summary["stage"] = word
        if numbers:
            self.run.log(numbers)


def numbers_of(stage: str) -> dict[str, float]:
    """Return what a reported stage says in numbers: share done, and step and loss of a training."""
    found = _COUNTED.fullmatch(stage)
    if found is None:
        return {}
    done, total = int(found["done"]), int(found["total"])
    word = found["stage"] if found["what"] is None else f"{found['stage']}/{found['what']}"
    numbers: dict[str, float] = {f"progress/{word}": done / total} if total else {}
    if found["loss"] is not None:
        numbers |= {"recovery/step": done, "recovery/loss": float(found["loss"])}
    return numbers
