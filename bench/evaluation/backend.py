"""What answers the requests of tasks in place of a transformers model in this process."""

from __future__ import annotations

import abc
from collections.abc import Callable
from typing import Any, ClassVar

import torch


class Backend(abc.ABC):
    """A checkpoint behind another engine. Its name is part of what a score is, so scores of two backends are never compared."""

    name: ClassVar[str]
    dtype: torch.dtype
    """Type in which it computes."""
    device: torch.device
    """Kind of device that it computes on."""

    @abc.abstractmethod
    def language_model(self, done: Callable[[int], None]) -> Any:
        """Return the model as lm-eval asks it, the same one each time.

        It has ``written``: texts that it wrote, by their prompts (``bench.evaluation.health``).

        Args:
            done: called with the number of requests just finished.

        Raises:
            EvaluationError: it cannot be started.
        """
