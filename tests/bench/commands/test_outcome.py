"""How commands end: failures are counted and end with 1, refusals by design end with 0, Ctrl-C says what is kept."""

from __future__ import annotations

import errno
import os
import sys
from pathlib import Path

import pytest
import typer
from rich.console import Console

from bench.cli import app, main
from bench.commands.outcome import end_with_outcome
from bench.records.record import Record, write_record
from bench.running.run import Run
from sweeps.grid_progress import GridResult, Outcome
from sweeps.outcome import SweepResult, TrialRow
from tests.bench.running.test_run import IMPOSSIBLE, REAP, config, execute


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> list[Record]:
    folder = tmp_path_factory.mktemp("outcome")
    return execute(config(folder, IMPOSSIBLE), folder)[0]


def ending(records: list[Record]) -> tuple[int, str]:
    console = Console(record=True, quiet=False, file=open("/dev/null", "w"), width=200)  # noqa: SIM115 - as long as it
    try:
        end_with_outcome(records, console)
    except typer.Exit as end:
        return end.exit_code, console.export_text()
    return 0, console.export_text()


def test_what_failed_is_counted_and_ends_with_one(records: list[Record]) -> None:
    base, refused = records
    failed = base.model_copy(update={"id": "a" * 16, "status": "failed", "reason": "full disk", "title": "REAP"})
    again = base.model_copy(update={"id": "a" * 16 + "-2", "title": "REAP"})
    assert ending([base]) == (0, "")
    status, text = ending([base, refused])
    assert status == 0 and "1 of 2 refused by design" in text and "smallest keep" in text
    status, text = ending([base, refused, failed])
    assert status == 1 and "1 of 3 failed" in text and "failed: REAP: full disk" in text
    assert ending([again, base, failed])[0] == 0, "a later try completed"


def test_a_report_of_failures_ends_with_one(records: list[Record], tmp_path: Path) -> None:
    call = ["report", str(tmp_path), "--out", str(tmp_path / "out")]
    write_record(records[0], tmp_path / "records")
    write_record(records[1], tmp_path / "records")
    assert status_of(call) == 0
    write_record(records[1].model_copy(update={"id": "a" * 16, "status": "failed"}), tmp_path / "records")
    assert status_of(call) == 1 and (tmp_path / "out" / "leaderboard.html").exists()


def test_ctrl_c_says_what_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stopped(self: Run) -> list[Record]:
        raise KeyboardInterrupt

    monkeypatch.setattr(Run, "execute", stopped)
    call = [
        "run",
        "--model",
        "pocket-mixtral",
        "--method",
        REAP.name,
        "--store",
        str(tmp_path),
        "--no-time",
        "--track",
        "disabled",
    ]
    assert status_of(call) == 130
    assert "kept in the store; the same command goes on" in capsys.readouterr().err


def status_of(call: list[str]) -> int:
    with pytest.raises(SystemExit) as end:
        app(call)
    return int(end.value.code or 0)


SWEEP = """
name: s
model: pocket-mixtral
method: reap
space: {keep: {low: 0.25, high: 1.0}}
objectives: [{kind: size, of: bytes}]
"""
GRID = "models: [pocket-mixtral]\nmethods: [reap]\nkeeps: [0.5]\n"


@pytest.mark.parametrize(("states", "status"), [(("complete", "refused"), 0), (("complete", "failed"), 1)])
def test_a_sweep_ends_with_one_where_a_trial_failed(
    states: tuple[str, ...], status: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = tuple(TrialRow(number, state, "why", {}, {}, None, {}, {}, 0.0, None) for number, state in enumerate(states))
    result = SweepResult("s", tmp_path, rows, ())
    monkeypatch.setattr("sweeps.terminal.run_sweep", lambda *arguments, **options: result)
    (tmp_path / "s.yaml").write_text(SWEEP)
    assert status_of(["sweep", str(tmp_path / "s.yaml"), "--store", str(tmp_path)]) == status


@pytest.mark.parametrize(
    ("states", "status"),
    [(("complete", "refused"), 0), (("complete", "failed"), 1), (("cancelled", "complete"), 1)],
)
def test_a_grid_ends_with_one_where_a_run_failed_or_never_ended(
    states: tuple[str, ...], status: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outcomes = tuple(Outcome("m", "reap", state, "why") for state in states)
    result = GridResult(outcomes, 1.0, tmp_path / "records", tmp_path / "logs")
    monkeypatch.setattr("sweeps.grid_terminal.run_grid", lambda *arguments, **options: result)
    (tmp_path / "g.yaml").write_text(GRID)
    assert status_of(["grid", str(tmp_path / "g.yaml"), "--store", str(tmp_path)]) == status
    paper = ["paper", "holistic", "table-8", "--store", str(tmp_path), "--out", str(tmp_path / "out")]
    assert status_of(paper) == status and (tmp_path / "out" / "holistic" / "table-8.md").exists()


CORPUS = ["--corpus", "pocket", "--sequences", "2", "--length", "16"]
CALLS = {
    "run": ["run", "--model", "pocket-mixtral", "--method", "reap", *CORPUS, "--no-time", "--track", "disabled"],
    "calibrate": ["calibrate", "pocket-mixtral", "--needs", "routed_tokens", *CORPUS],
    "sweep": ["sweep", "s.yaml"],
}


@pytest.mark.parametrize("verb", sorted(CALLS))
@pytest.mark.parametrize("kind", ["read-only", "full", "a file"])
def test_a_store_that_cannot_be_written_to_is_one_error(
    verb: str, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What the disk says is refused at every file that is made in the store: root ignores permissions."""
    store = tmp_path / "store"
    number = {"read-only": errno.EROFS, "full": errno.ENOSPC, "a file": errno.ENOTDIR}[kind]
    if kind == "a file":
        store.write_text("no folder")
    opened, made = os.open, os.mkdir

    def refuse(path: object) -> None:
        if str(path).startswith(str(store)):
            raise OSError(number, os.strerror(number), str(path))

    def open_or_refuse(path: object, flags: int, *more: object, **named: object) -> int:
        if flags & os.O_CREAT:
            refuse(path)
        return opened(path, flags, *more, **named)  # type: ignore[call-overload, no-any-return]  # as it was called

    def make_or_refuse(path: object, *more: object, **named: object) -> None:
        refuse(path)
        made(path, *more, **named)  # type: ignore[arg-type]  # as it was called

    if kind != "a file":
        monkeypatch.setattr(os, "open", open_or_refuse)
        monkeypatch.setattr(os, "mkdir", make_or_refuse)
    (tmp_path / "s.yaml").write_text(SWEEP)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["moebench", *CALLS[verb], "--store", str(store)])
    with pytest.raises(SystemExit) as end:
        main()
    told = capsys.readouterr().err
    assert end.value.code == 1 and told.count("error:") == 1 and "Traceback" not in told
    assert os.strerror(number) in told or (kind == "a file" and os.strerror(errno.EEXIST) in told)
    assert str(store) in told
