"""Where the workers of sweeps and grids run.

An executor costs one file, ``sweeps/executors/NAME.py``, or an entry point NAME of the group ``moebench.executors`` in
another distribution. It holds a subclass of ``Executor`` whose fields are its settings, ``name: Literal[NAME] = NAME``
among them.
"""

from __future__ import annotations

import time
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from pydantic import Field

from bench.settings.strict import Strict
from methods.framework.errors import UnknownNameError
from sweeps.plugin import offered

ENTRY_POINT_GROUP = "moebench.executors"


@dataclass(frozen=True, slots=True)
class Worker:
    """A worker to be started: ``python -m MODULE ARGUMENTS``.

    Args:
        module: that runs as a program.
        arguments: of the program.
        log: file for everything that it prints; its folder exists.
        number: its number, from 0.
        count: workers that run at once.
        threads: threads that it may use, None for its share of the machine.
    """

    module: str
    arguments: tuple[str, ...]
    log: Path
    number: int = 0
    count: int = 1
    threads: int | None = None


class Handle(Protocol):
    """A worker that was started, or waits to be."""

    def poll(self) -> int | None:
        """Return the exit code, or None as long as it has not ended."""

    def interrupt(self) -> None:
        """Ask it to end as Ctrl-C does."""

    def kill(self) -> None:
        """End it at once."""


class Executor(Strict):
    """Settings of a place where workers run, and how they get there."""

    name: str = Field(description="name of the executor")

    @property
    @abstractmethod
    def host(self) -> str:
        """Name of this machine by which workers reach it."""

    @abstractmethod
    def submit(self, workers: Sequence[Worker]) -> list[Handle]:
        """Start the workers, or queue them to be started, and return at once."""


def parse_executor(value: Any) -> Executor:
    """Return an executor from its name, or from its name and settings; a validator of pydantic.

    Raises:
        ValueError: no such executor (the closest name is given), or a setting that it does not have or allow.
    """
    if isinstance(value, Executor):
        return value
    settings: dict[str, Any] = dict(value) if isinstance(value, Mapping) else {"name": value}
    known = offered("sweeps.executors", ENTRY_POINT_GROUP, Executor, "name")  # type: ignore[type-abstract]  # of subclasses
    name = str(settings.get("name"))
    if name not in known:
        raise ValueError(str(UnknownNameError("executor", name, known)))
    return known[name].model_validate(settings)


def stop(handles: Sequence[Handle], patience: float = 30.0) -> None:
    """End all workers: ask them first, and after ``patience`` seconds do not ask."""
    for handle in handles:
        if handle.poll() is None:
            handle.interrupt()
    wait(handles, patience)
    for handle in handles:
        if handle.poll() is None:
            handle.kill()


def wait(handles: Sequence[Handle], patience: float) -> None:
    """Wait until all workers have ended, at most ``patience`` seconds."""
    end = time.monotonic() + patience
    while any(handle.poll() is None for handle in handles) and time.monotonic() < end:
        time.sleep(0.05)


def interrupt(number: int, frame: object) -> None:
    """Answer a request to end as Ctrl-C is answered: the trial in hand is given back."""
    raise KeyboardInterrupt
