"""When a row is recorded: as soon as its last stage has ended, whatever becomes of the others."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, Self

import pytest

from bench.records.mirror import Tracker
from bench.records.record import Record, Timing, read_records
from bench.running.run import Run
from bench.running.subject import Subject
from bench.settings.method_settings import MethodConfig
from bench.settings.run_settings import RunConfig
from bench.settings.stage_settings import EvaluationConfig
from bench.settings.timing_settings import TimingConfig
from bench.store.store import Store

METHODS = tuple(MethodConfig(name="random", knobs={"keep": keep}) for keep in (0.25, 0.5, 0.75))


def execute(store: Path, timed: bool = False) -> tuple[list[Record], dict[str, list[str]]]:
    """Run three rows without tasks, and return their records and which records were there as each stage began."""
    config = RunConfig(
        model="pocket-mixtral",
        methods=METHODS,
        evaluation=EvaluationConfig(),
        timing=TimingConfig(enabled=timed),
    )
    there: dict[str, list[str]] = {}

    def name(method: str | None, knobs: dict[str, Any]) -> str:
        return "base" if method is None else f"{knobs['keep']}"

    def report(subject: Subject, stage: str) -> None:
        records = read_records(store / "records") if (store / "records").exists() else ()
        row = name(subject.method and subject.method.name, subject.knobs)
        there[f"{row}: {stage}"] = sorted(name(one.method, one.knobs) for one in records)

    with Tracker("disabled", folder=store) as tracker:
        return Run(config, Store(store), tracker, report).execute(), there


class Session:
    """Times nothing, refuses the first row, and fails at the second by an error that nobody wrote a message for."""

    def __init__(self, *_: object, **__: object) -> None:
        self.asked: list[Path] = []
        self.engine = SimpleNamespace(refuses=self.refuses, distributions=())
        self.pairs = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def refuses(self, path: Path) -> str | None:
        self.asked.append(path)
        return "too few experts" if len(self.asked) == 1 else None

    def time(self, *_: object) -> tuple[Timing, Timing]:
        self.pairs += 1
        if self.pairs == 1:
            raise ZeroDivisionError("no tokens")
        return Timing(peak_bytes=1), Timing(peak_bytes=2)


def test_a_record_is_there_as_soon_as_its_row_has_ended(tmp_path: Path) -> None:
    _, there = execute(tmp_path)
    assert there["0.25: plan"] == ["base"]
    assert there["0.5: plan"] == ["0.25", "base"]
    assert there["0.75: plan"] == ["0.25", "0.5", "base"]


def test_timed_rows_are_recorded_pair_by_pair(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bench.running.run.TimingSession", Session)
    records, there = execute(tmp_path, timed=True)
    assert there["0.75: plan"] == [] == there["0.5: time"], "quality comes first"
    assert there["0.75: time"] == ["0.5"] and there["base: complete"] == ["0.5", "base"]
    assert there["0.25: complete"] == ["0.25", "0.5", "0.75", "base"]
    base, refused, failed, timed = records
    assert (base.timing, timed.timing) == (Timing(peak_bytes=1), Timing(peak_bytes=2)), "the base has its first pair's"
    assert (refused.status, refused.timing) == ("complete", Timing(reason="too few experts"))
    assert failed.status == "failed" and failed.timing is None


def test_an_error_of_any_kind_ends_its_row_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = Run._check_target

    def broken(run: Run, subject: Subject, decided: Any) -> None:
        if subject.knobs.get("keep") == 0.5 and subject.plan is not None:
            raise ZeroDivisionError("half of nothing")
        plan(run, subject, decided)

    monkeypatch.setattr(Run, "_check_target", broken)
    records, _ = execute(tmp_path)
    assert [one.status for one in records] == ["complete", "complete", "failed", "complete"]
    reason = records[2].reason or ""
    assert reason.startswith("ZeroDivisionError at test_recorded.py:") and ": half of nothing; " in reason
    log = tmp_path / reason.rpartition(" ")[2]
    assert "in broken" in log.read_text() and log.parent == tmp_path / "logs"
