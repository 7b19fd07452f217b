"""Studies on Optuna's gRPC proxy, and storages that do not answer."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from optuna.storages import RDBStorage
from optuna.storages._grpc.server import make_server

from methods.framework.errors import RecordError
from sweeps.executor import Worker
from sweeps.journal import JOURNAL, open_study
from sweeps.outcome import LOST, SweepResult
from sweeps.resident import Resident
from sweeps.study import run_sweep
from sweeps.workers import MODULE, arguments, write_config
from tests.support.slurm import free_ports
from tests.support.sweep_forks import Child, Nursery, wait_for
from tests.support.tiny_sweeps import drawn, sweep


@pytest.fixture
def proxy(tmp_path: Path) -> Iterator[str]:
    (port,) = free_ports(1)
    server = make_server(RDBStorage(f"sqlite:///{tmp_path}/study.db"), "127.0.0.1", port)
    server.start()
    yield f"grpc://127.0.0.1:{port}"
    server.stop(None)


def test_a_study_on_the_proxy_with_a_worker_killed(
    home: Path, resident: Resident, whole: SweepResult, nursery: Nursery, tmp_path: Path, proxy: str
) -> None:
    config = sweep(home, storage=proxy)
    worker = Worker(MODULE, arguments(write_config(config, tmp_path), tmp_path, 0), config.folder(tmp_path) / "w.log")
    child = Child(nursery, worker, hold=3, stage="measure")
    wait_for(lambda: child.mark.exists() or child.poll() is not None)
    child.kill()
    wait_for(lambda: child.poll() is not None)
    result = run_sweep(config, store=tmp_path, resident=resident)
    assert [row.reason for row in result.rows if row.state == "failed"] == [LOST]
    assert [(p, plan) for p, plan, _ in drawn(result.rows)] == [(p, plan) for p, plan, _ in drawn(whole.rows)]
    assert not (config.folder(tmp_path) / JOURNAL).exists()


@pytest.mark.parametrize("kind", ["grpc://127.0.0.1:{port}", "postgresql://nobody@127.0.0.1:{port}/studies"])
def test_a_storage_that_does_not_answer_is_one_error(
    home: Path, tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sweeps.storages._CONNECT_SECONDS", 0.5)
    config = sweep(home, storage=kind.format(port=free_ports(1)[0]))
    with pytest.raises(RecordError, match=r"the study's storage \S+ does not answer \(.+\); see that it runs"):
        open_study(config, config.folder(tmp_path))
