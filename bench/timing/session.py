"""What timings with and without a server share: the two models, the base that stays, and what becomes of a failure."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

from bench.checkpoint.config_file import read_config
from bench.records.record import Interval, Mark, Timing
from bench.serving.engine import Engine, engine_here, engine_named
from bench.settings.timing_settings import PairProtocol
from bench.timing.intervals import spread
from methods.framework.errors import ConfigError

_ALIKE = 0.5
"""Correlation of neighbouring repeats from which a row is marked: intervals are widened for it, but few repeats tell it badly."""


class Subject(ABC):
    """One model under measurement: its process, its numbers, and the reason that ended it."""

    def __init__(self, path: Path, runner: Engine, reason: str | None = None) -> None:
        """Ask the engine about a checkpoint.

        Args:
            path: checkpoint folder.
            runner: engine that is to be timed.
            reason: why it cannot be timed, whatever the engine says.

        Raises:
            CheckpointError: the folder has no config.
        """
        self.path = path
        self.reason = runner.refuses(path) or reason
        self.realisation = None if self.reason else runner.realisation(path)
        self.reason = self.reason or runner.untimed(path)

    @abstractmethod
    def forget(self) -> None:
        """Drop all numbers, and keep process, failure and facts."""

    @abstractmethod
    def close(self) -> None:
        """End its process."""


S = TypeVar("S", bound=Subject)
P = TypeVar("P", bound=PairProtocol)


class PairSession(ABC, Generic[S, P]):
    """Times many models against one base, whose process is kept between calls."""

    def __init__(self, protocol: P, logs: Path, faked: bool) -> None:
        """Prepare a session.

        Args:
            protocol: what each timing does.
            logs: folder for the full logs of all processes.
            faked: whether processes are given, so that the engine need not be there.

        Raises:
            UnknownNameError: the protocol names an engine that there is not.
        """
        self.engine = engine_named(protocol.engine) if protocol.engine else engine_here()
        self._protocol, self._logs = protocol, logs
        self._missing = None if faked else self.engine.missing()
        self._base: S | None = None

    @abstractmethod
    def __enter__(self) -> Self:
        """Start what all measurements share."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End all processes."""
        if self._base is not None:
            self._base.close()

    def time(self, base: Path, compressed: Path) -> tuple[Timing, Timing]:
        """Time one pair.

        Args:
            base: checkpoint folder of the original.
            compressed: checkpoint folder of the compressed model.

        Returns:
            Timing of the base (without ratios) and of the compressed model (with ratios); where one cannot be served,
            its timing holds the reason and no number.

        Raises:
            CheckpointError: a folder has no config.
            ConfigError: prompt and generated tokens do not fit the model's positions.
        """
        first, second = self._subject_of_base(base), self._subject(compressed)
        if self._missing:
            return Timing(reason=self._missing), Timing(reason=self._missing)
        self._check_lengths(base)
        try:
            self._alternate(first, second)
        finally:
            second.close()
        return self._timing(first, None), self._timing(second, first)

    @abstractmethod
    def _subject(self, path: Path) -> S:
        """Return the model in ``path``, without a process."""

    @abstractmethod
    def _alternate(self, first: S, second: S) -> None:
        """Measure both in turn; failures become their reasons."""

    @abstractmethod
    def _numbers(self, subject: S, base: S | None) -> dict[str, Any]:
        """Return the fields of a timing that succeeded; without ratios where there is no base."""

    def _subject_of_base(self, base: Path) -> S:
        """Return the base, with its living process or its failure where it is that of the last call, and no numbers."""
        if self._base is None or self._base.path != base:
            if self._base is not None:
                self._base.close()
            self._base = self._subject(base)
        self._base.forget()
        return self._base

    def _check_lengths(self, base: Path, spare: int = 0) -> None:
        """Refuse sequences of prompt, generated and ``spare`` further tokens that are longer than the base allows."""
        length = self._protocol.prompt + self._protocol.generate + spare
        limit = read_config(base).get("max_position_embeddings")
        if limit is not None and length > limit:
            terms = "prompt + generate" + (f" + {spare}" if spare else "")
            raise ConfigError(f"{terms} = {length} tokens, but {base} has {limit} positions; lower them")

    def _timing(self, subject: S, base: S | None) -> Timing:
        # An original is neither; a base that is itself compressed only says where it is not run so.
        realisation = subject.realisation if base is not None or subject.realisation == "dense" else None
        if subject.reason:
            return Timing(reason=subject.reason, realisation=realisation)
        if base is not None and base.reason:
            return Timing(reason=f"the base could not be timed: {base.reason}", realisation=realisation)
        weights = weights_bytes(subject.path)
        return Timing(weights_bytes=weights, realisation=realisation, **self._numbers(subject, base))

    def _marks(self, ratios: list[Interval], change: float, alike: float, uneven: bool = False) -> tuple[Mark, ...]:
        """Return what is to be doubted about some ratios.

        Args:
            ratios: noisy where the interval of one is wider than the protocol allows.
            change: share by which the base changed in the meantime.
            alike: correlation of neighbouring repeats of a ratio, the largest.
            uneven: whether the processes got unequal shares of the processor.
        """
        marks: dict[Mark, bool] = {
            "noisy": self._noisy(ratios),
            "drifting": abs(change) > self._protocol.drift,
            "uneven": uneven,
            "correlated": alike >= _ALIKE,
        }
        return tuple(mark for mark, found in marks.items() if found)

    def _noisy(self, ratios: list[Interval]) -> bool:
        return max(map(spread, ratios)) > self._protocol.noise


def weights_bytes(path: Path) -> int:
    """Return the bytes of the safetensors files in ``path``."""
    return sum(file.stat().st_size for file in path.glob("*.safetensors"))
