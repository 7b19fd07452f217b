"""A sweep and a grid on a Slurm cluster of two pretended nodes: a worker killed, a node set down, a task preempted."""

from __future__ import annotations

import os
import signal
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bench.records.record import read_records
from sweeps.executors.slurm import Slurm
from sweeps.grid import run_grid
from sweeps.grid_progress import GridResult
from sweeps.outcome import LOST, SweepResult
from sweeps.study import run_sweep
from tests.support.distribution import install
from tests.support.slurm import GPUS, Cluster, lacking
from tests.support.sweep_forks import wait_for
from tests.support.tiny_grids import grid
from tests.support.tiny_sweeps import settle, sweep

pytestmark = [pytest.mark.e2e, pytest.mark.skipif(bool(lacking()), reason=f"no Slurm: {lacking()}")]

# Five of eight cores: one task on each node.
EXECUTOR = {"name": "slurm", "cpus": 5, "gpus": 2, "memory_gb": 2, "minutes": 30}

MARK = '''
import os
import socket
import time
from pathlib import Path


def hold(place):
    """Say who is here, and wait until the test lets go."""
    name = f"{socket.gethostname()}-{os.getpid()}"
    text = f"{os.environ.get('CUDA_VISIBLE_DEVICES')} {os.environ.get('SLURM_JOB_ID')} {os.environ['OMP_NUM_THREADS']}"
    if not (place / "go").exists():
        (place / f"{name}.new").write_text(text)
        (place / f"{name}.new").rename(place / f"{name}.mark")
    while not (place / "go").exists():
        time.sleep(0.05)
'''

OBJECTIVE = (
    MARK
    + """
from typing import Literal

from sweeps.objective import Objective


class Part(Objective):
    kind: Literal["held"] = "held"
    place: Path

    def measure(self, resident):
        def measured(candidate):
            hold(self.place)
            return float(sum(sum(layer.experts or ()) for layer in candidate.plan.layers))

        return measured
"""
)

METHOD = (
    MARK
    + '''
from typing import ClassVar

from methods.criterion import Frequency


class Part(Frequency):
    """Frequency that waits."""

    name: ClassVar[str] = "waiting"

    def plan(self, *arguments):
        hold(Path(os.environ["HELD_PLACE"]))
        return super().plan(*arguments)
'''
)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with (
        tempfile.TemporaryDirectory(prefix="slurm-") as folder,
        Cluster(Path(folder)) as up,
        pytest.MonkeyPatch.context() as patch,
    ):
        for name, value in up.variables.items():
            patch.setenv(name, value)
        yield up


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """Where workers say who they are."""
    (tmp_path / "held").mkdir()
    return tmp_path / "held"


class Background(threading.Thread):
    """Runs something, and keeps what it came to."""

    def __init__(self, call: Any) -> None:
        super().__init__(daemon=True)
        self._call, self.result, self.error = call, None, None
        self.start()

    def run(self) -> None:
        try:
            self.result = self._call()
        except BaseException as error:
            self.error = error

    def ended(self) -> Any:
        self.join(120)
        assert self.error is None and self.result is not None, f"{self.error!r}"
        return self.result


def both(place: Path, running: Background) -> dict[str, tuple[int, list[str]]]:
    """Wait for a worker on each node, and return process and environment of each by node."""
    wait_for(lambda: len(list(place.glob("*.mark"))) == 2 or not running.is_alive())
    assert running.is_alive(), repr(running.error)
    found = {
        path.stem.split("-")[0]: (int(path.stem.split("-")[1]), path.read_text().split()) for path in place.iterdir()
    }
    assert set(found) == {"n1", "n2"}, "one task on each node"
    for _, (gpus, job, threads) in found.values():
        assert len(set(gpus.split(",")) & {str(number) for number in range(GPUS)}) == 2, "two GPUs, as asked for"
        assert int(job) > 0 and threads == "5"
    return found


def lose_one_worker_and_one_node(cluster: Cluster, place: Path, running: Background) -> None:
    found = both(place, running)
    os.kill(found["n1"][0], signal.SIGKILL)
    cluster.ask("scontrol", "update", "NodeName=n2", "State=DOWN", "Reason=test")


@pytest.fixture(autouse=True)
def nodes_up(cluster: Cluster) -> Iterator[None]:
    yield
    if any(state.startswith("down") for state in cluster.states().values()):
        cluster.ask("scontrol", "update", "NodeName=n2", "State=RESUME")
        wait_for(lambda: set(cluster.states().values()) == {"idle"}, 60)


def test_a_sweep(cluster: Cluster, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = settle(tmp_path)
    install(tmp_path, monkeypatch, "moebench.objectives", "held", OBJECTIVE)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    config = sweep(
        home, objectives=[{"kind": "held", "place": str(place)}], jobs=2, trials=6, executor=EXECUTOR, stale_after=5
    )
    running = Background(lambda: run_sweep(config, store=tmp_path / "store"))
    lose_one_worker_and_one_node(cluster, place, running)
    # The task of the lost node is queued again, and takes the cores that the killed one left.
    (place / "go").touch()
    result: SweepResult = running.ended()
    assert result.count("complete") == 6
    assert {row.reason for row in result.rows if row.state == "failed"} <= {LOST, "cancelled"}
    assert result.count("failed") >= 1 and result.count("running") == 0
    logs = "".join(path.read_text() for path in result.folder.glob("worker-*.log"))
    assert "on n1, GPUs " in logs and "on n2, GPUs " in logs


def test_a_task_that_is_preempted_gives_its_trial_back_and_comes_again(
    cluster: Cluster, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = settle(tmp_path)
    install(tmp_path, monkeypatch, "moebench.objectives", "held", OBJECTIVE)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    # A worker that does not give its trial back would be silent for too long only after the test.
    config = sweep(
        home, objectives=[{"kind": "held", "place": str(place)}], jobs=2, trials=6, executor=EXECUTOR, stale_after=600
    )
    running = Background(lambda: run_sweep(config, store=tmp_path / "store"))
    found = both(place, running)
    cluster.ask(
        "sbatch", "--partition=urgent", "--nodelist=n2", "--cpus-per-task=5", "--output=/dev/null", "--wrap=sleep 1"
    )
    wait_for(lambda: len(list(place.glob("n2-*.mark"))) == 2 or not running.is_alive(), 120)
    assert running.is_alive(), "the task comes again where it was, and holds the trial that it gave back"
    (place / "go").touch()
    result: SweepResult = running.ended()
    assert result.count("complete") == 6 and result.count("running") == 0
    assert [row.reason for row in result.rows if row.state == "failed"] == ["cancelled"], "not lost, and no other trial"
    logs = "".join(path.read_text() for path in result.folder.glob("worker-*.log"))
    assert logs.count(f"task {found['n2'][1][1]} on n2") == 2, "one task, started twice"


def test_a_grid(cluster: Cluster, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = settle(tmp_path)
    install(tmp_path, monkeypatch, "moebench.methods", "waiting", METHOD)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setenv("HELD_PLACE", str(place))
    config = grid(
        tmp_path,
        models=[str(home / "model")],
        methods=["weight_norm", "waiting"],
        keeps=[0.5],
        calibration={"corpora": [str(home / "calibration.json")], "seeds": [0, 1], "sequences": 8, "length": 16},
        evaluation={"tasks": []},
        workers=2,
        threads=5,
        executor={**EXECUTOR, "address": "127.0.0.1"},
    )
    running = Background(lambda: run_grid(config, track="disabled"))
    lose_one_worker_and_one_node(cluster, place, running)
    (place / "go").touch()
    result: GridResult = running.ended()
    assert result.counts == {"complete": 4}, result.problems
    assert {outcome.id for outcome in result.outcomes} == {record.id for record in read_records(result.records)}


def test_a_task_whose_time_is_up_gives_its_trial_back_and_goes_on(
    cluster: Cluster, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = settle(tmp_path)
    install(tmp_path, monkeypatch, "moebench.objectives", "held", OBJECTIVE)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    config = sweep(home, objectives=[{"kind": "held", "place": str(place)}], trials=2, executor=EXECUTOR)
    assert isinstance(config.executor, Slurm)
    running = Background(lambda: run_sweep(config, store=tmp_path / "store"))
    wait_for(lambda: list(place.glob("*.mark")))
    (job,) = {path.read_text().split()[1] for path in place.glob("*.mark")}
    cluster.ask("scancel", "--signal=USR2", job)  # what Slurm sends before it takes the node away
    (log,) = (tmp_path / "store").rglob("worker-0.log")
    wait_for(lambda: log.read_text().count("GPUs ") == 2)
    (place / "go").touch()
    result: SweepResult = running.ended()
    assert [row.state for row in result.rows] == ["failed", "complete", "complete"]
    assert result.rows[0].reason == "cancelled" and result.rows[0].parameters == result.rows[1].parameters
