"""What a worker of a grid does with a job."""

from __future__ import annotations

from pathlib import Path

from bench.pocket import write_tasks
from bench.records.mirror import Tracker
from bench.records.record import read_records
from sweeps.grid_config import jobs
from sweeps.grid_worker import execute
from tests.support.tiny_grids import grid


def test_methods_that_decide_the_same_are_evaluated_once(tmp_path: Path) -> None:
    folder = write_tasks(tmp_path / "tasks", items=4)
    config = grid(
        folder,
        methods=["frequency", "reap"],
        keeps=[1.0],
        calibration={"seeds": [0, 1], "sequences": 4, "length": 32},
        store=str(tmp_path),
    )
    begun: list[tuple[str, int]] = []

    def told(title: str, count: int) -> None:
        begun.append((title, count))

    with Tracker("disabled", folder=tmp_path) as tracker:
        ended = [execute(job, tmp_path, tracker, told) for job in jobs(config, tmp_path)]
        again = [execute(job, tmp_path, tracker, lambda *_: None) for job in jobs(config, tmp_path)]
    assert begun == [("base", 1), *[("Frequency keep=1.0", 1), ("REAP keep=1.0", 2)] * 2]
    assert ended == again, "the second time reads what the first one wrote"
    assert [[(one.method, one.status) for one in job] for job in ended] == [
        [("base", "complete")],
        *[[("frequency", "complete"), ("reap", "complete")]] * 2,
    ]
    records = list(read_records(tmp_path / "records"))
    assert len(records) == 5
    assert len({record.plan for record in records}) == 1
    contents = len(list((tmp_path / "cache" / "scores").iterdir()))
    assert contents <= 2, "one for the source and one for its copy: four decisions, one evaluation"
