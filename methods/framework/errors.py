"""One tree of errors. A message says what failed, what was found, what is allowed, and what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class MoebenchError(Exception):
    """Root of every error that a user can cause and mend."""


class ConfigError(MoebenchError):
    """A setting is unknown or has a value that is not allowed."""


SUGGESTED = 5
"""Names that a message lists at most."""


class UnknownNameError(ConfigError):
    """A name (method, task, statistic, family, ...) is not among the known ones."""

    def __init__(self, kind: str, name: str, known: Iterable[str], remedy: str = "") -> None:
        """Name the closest match among ``known``, and list them: the closest ``SUGGESTED`` where there are more.

        Args:
            kind: what the name is of: method, task, statistic, ...
            name: the one that is unknown.
            known: those that exist.
            remedy: sentence at the end of the message.
        """
        names = sorted(known)
        close = difflib.get_close_matches(name, names, n=1)
        message = f"unknown {kind} {name!r}"
        message += f"; did you mean {close[0]!r}?" if close else "."
        shown, more = names, len(names) - SUGGESTED
        if more > 0:
            shown = difflib.get_close_matches(name, names, n=SUGGESTED, cutoff=0.0)
        rest = f" and {more} more" if more > 0 else ""
        message += f" Known: {', '.join(shown)}{rest}." if names else " None is known."
        super().__init__(f"{message} {remedy}".rstrip())


class CheckpointError(MoebenchError):
    """A checkpoint is missing, truncated, inconsistent or of a kind that cannot be read."""


class NotMoEError(CheckpointError):
    """The model holds no routed experts, or its family is unknown."""


class PlanError(MoebenchError):
    """A plan does not fit its model, or two plans do not compose."""


class RefusedError(MoebenchError):
    """A method does not apply to this model, or a request makes no sense for it; the message is the reason."""


class StatsError(MoebenchError):
    """A statistic is missing, was not declared in ``needs``, or does not fit the model."""


class EvaluationError(MoebenchError):
    """An evaluation task is unknown, has no data, or failed."""


class TimingError(MoebenchError):
    """A checkpoint could not be served or timed; the message is the reason."""


class RecordError(MoebenchError):
    """A record cannot be read or written, or would overwrite another."""


class PublishError(MoebenchError):
    """A checkpoint could not be sent to the hub; the message is the reason."""
