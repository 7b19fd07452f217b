"""One tiny model, opened once, and one uninterrupted sweep of it, for all tests of sweeps."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from sweeps.opening import open_resident
from sweeps.outcome import SweepResult
from sweeps.resident import Resident
from sweeps.study import run_sweep
from tests.support.sweep_forks import Nursery
from tests.support.tiny_sweeps import objectives, settle, sweep


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny model and two files of token ids."""
    return settle(tmp_path_factory.mktemp("sweep"))


@pytest.fixture(scope="session")
def resident(home: Path) -> Resident:
    return open_resident(sweep(home, objectives=objectives(home, "nll", "kl")), home / "store")


@pytest.fixture(scope="session")
def whole(home: Path, resident: Resident) -> SweepResult:
    """A sweep that nobody interrupted; its store is only read."""
    return run_sweep(sweep(home), store=home / "whole", resident=resident)


@pytest.fixture(scope="session")
def nursery() -> Iterator[Nursery]:
    started = Nursery()
    yield started
    started.close()
