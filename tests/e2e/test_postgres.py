"""Three workers on one study in PostgreSQL: one is killed, and its trial is given back within seconds."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from methods.framework.errors import RecordError
from sweeps.executor import Worker
from sweeps.journal import open_study
from sweeps.outcome import LOST
from sweeps.resident import Resident
from sweeps.study import run_sweep
from sweeps.workers import MODULE, arguments, write_config
from tests.support.postgres import PASSWORD, Server, programs
from tests.support.sweep_forks import Child, Nursery, wait_for
from tests.support.tiny_sweeps import drawn, settle, sweep

pytestmark = [pytest.mark.e2e, pytest.mark.skipif(programs() is None, reason="PostgreSQL's server is not installed")]


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with tempfile.TemporaryDirectory(prefix="postgres-") as folder, Server(Path(folder)) as up:
        yield up


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return settle(tmp_path_factory.mktemp("home"))


@pytest.fixture(scope="module")
def nursery(server: Server) -> Iterator[Nursery]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("STUDIES", server.secret_url)
        started = Nursery()
        yield started
        started.close()


def test_three_workers_and_one_is_killed(home: Path, nursery: Nursery, tmp_path: Path) -> None:
    config = sweep(home, name="three", storage="$STUDIES", stale_after=3, trials=12)
    study = open_study(config, config.folder(tmp_path))
    path = write_config(config, tmp_path)
    workers = [Worker(MODULE, arguments(path, tmp_path, n), path.parent / f"worker-{n}.log") for n in range(3)]
    killed = Child(nursery, workers[0], hold=2, stage="measure", elsewhere=True)
    # The second may not end the study before the first is killed, nor both of them before they see that it is.
    gates = [path.parent / f"go-{number}" for number in (1, 2)]
    others = [Child(nursery, worker, wait_for=[gate]) for worker, gate in zip(workers[1:], gates, strict=True)]
    wait_for(lambda: all(child.mark.exists() or child.poll() is not None for child in (killed, *others)))
    assert killed.poll() is None, workers[0].log.read_text()
    killed.kill()
    began = time.monotonic()
    gates[0].touch()
    wait_for(lambda: any(trial.state.name == "FAIL" for trial in study.get_trials(False)))
    assert time.monotonic() - began < 15
    gates[1].touch()
    wait_for(lambda: all(child.poll() is not None for child in others))
    assert [child.poll() for child in others] == [0, 0], [worker.log.read_text() for worker in workers]
    trials = study.get_trials(False)
    assert sum(trial.state.name == "COMPLETE" for trial in trials) >= 12
    (lost,) = (trial for trial in trials if trial.state.name == "FAIL")
    again = [trial for trial in trials if trial.params == lost.params and trial.number != lost.number]
    assert [trial.state.name for trial in again] == ["COMPLETE"]
    assert len({trial.user_attrs["process"]["pid"] for trial in trials}) == 3
    assert run_sweep(config, store=tmp_path).count("complete") >= 12, "its rows and its front"
    written = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert written and not any(PASSWORD.encode() in file.read_bytes() for file in written)


def test_killed_anywhere_it_draws_what_it_would_have_drawn(home: Path, nursery: Nursery, tmp_path: Path) -> None:
    stores = {name: tmp_path / name for name in ("whole", "killed")}
    results = {}
    for name, store in stores.items():
        config = sweep(home, name=name, storage="$STUDIES", stale_after=1, sampler={"name": "nsga2", "population": 3})
        path = write_config(config, store)
        worker = Worker(MODULE, arguments(path, store, 0), path.parent / "worker-0.log")
        for stage in ("ask", "measure", "tell") if name == "killed" else ():
            child = Child(nursery, worker, hold=6 if stage == "ask" else 2, stage=stage)
            wait_for(lambda child=child: child.mark.exists() or child.poll() is not None)
            child.kill()
            wait_for(lambda child=child: child.poll() is not None)
        child = Child(nursery, worker)
        wait_for(lambda child=child: child.poll() is not None)
        assert child.poll() == 0, worker.log.read_text()
        results[name] = run_sweep(config, store=store)
    assert [row.reason for row in results["killed"].rows if row.state == "failed"] == [LOST] * 2
    assert drawn(results["killed"].rows) == drawn(results["whole"].rows)


def test_a_server_that_stops_is_one_error(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from sweeps.opening import open_resident

    with tempfile.TemporaryDirectory(prefix="postgres-") as folder, Server(Path(folder)) as server:
        monkeypatch.setenv("STUDIES", server.secret_url)
        config = sweep(home, name="stops", storage="$STUDIES")
        resident: Resident = open_resident(config, tmp_path)
        seen: list[int] = []

        def stop(row: object) -> None:
            seen.append(1)
            if len(seen) == 2:
                server.stop()

        with pytest.raises(RecordError, match=r"storage \$STUDIES does not answer \(.+\); see that it runs") as error:
            run_sweep(config, store=tmp_path, progress=stop, resident=resident)
        assert PASSWORD not in str(error.value)
