"""What a worker of a grid does with a job."""

from __future__ import annotations

from io import StringIO
from pathlib import Path
from typing import Any

from rich.console import Console

from bench.pocket import write_tasks
from bench.records.mirror import Tracker
from bench.records.record import read_records
from sweeps.grid_config import Job, jobs
from sweeps.grid_terminal import board_of
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

    console = Console(record=True, width=200, file=StringIO(), force_terminal=True)
    board = board_of(config, console)
    with Tracker("disabled", folder=tmp_path) as tracker:
        ended = []
        for job in jobs(config, tmp_path):

            def stages(job: Job = job, **step: Any) -> None:
                board.note(job.rows[step["row"]], step["stage"], reason=step["reason"], average=step["average"])

            ended.append(execute(job, tmp_path, tracker, told, stages))
        again = [execute(job, tmp_path, tracker, lambda *_: None) for job in jobs(config, tmp_path)]
    assert begun == [("base", 1), *[("Frequency keep=1.0", 1), ("REAP keep=1.0", 2)] * 2]
    assert ended == again, "the second time reads what the first one wrote"
    assert [[(one.method, one.status) for one in job] for job in ended] == [
        [("base", "complete")],
        *[[("frequency", "complete"), ("reap", "complete")]] * 2,
    ]
    console.print(board)
    text = console.export_text()
    assert text.startswith("5 of 5 rows") and text.count("complete") == 5 and text.count("100.0 %") >= 5
    assert "Frequency keep=1 · seed 0" in text and "REAP keep=1 · seed 1" in text
    records = list(read_records(tmp_path / "records"))
    assert len(records) == 5
    assert len({record.plan for record in records}) == 1
    contents = len(list((tmp_path / "cache" / "scores").iterdir()))
    assert contents <= 2, "one for the source and one for its copy: four decisions, one evaluation"
