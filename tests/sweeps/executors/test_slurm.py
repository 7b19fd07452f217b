"""Workers under Slurm, without a cluster: what is submitted, what a task does, and how its end is noticed."""

from __future__ import annotations

import os
import shlex
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
from submitit.core.utils import DelayedSubmission

from methods.framework.errors import ConfigError, EvaluationError
from sweeps.executor import Worker, parse_executor
from sweeps.executors.slurm import Slurm, Task, come_again, read_states

QUEUE = "7_0|RUNNING\n7_1|PENDING\n"


@pytest.fixture
def commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Commands of a Slurm that tells what the file ``queue`` holds, and notes what is asked of it."""
    folder = tmp_path / "bin"
    folder.mkdir()
    answers = {
        "sbatch": 'cp "$1" script; echo Submitted batch job 7',
        "srun": "",
        "squeue": "cat queue 2>/dev/null || { echo slurm_load_jobs error: Invalid job id specified >&2; exit 1; }",
        "scancel": "",
    }
    for name, answer in answers.items():
        script = f'#!/bin/sh\ncd {shlex.quote(str(tmp_path))}\necho {name} "$@" >> asked\n{answer}\n'
        (folder / name).write_text(script)
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(folder), prepend=os.pathsep)
    monkeypatch.setattr("sweeps.executors.slurm._ASK_SECONDS", 0.0)
    (tmp_path / "queue").write_text(QUEUE)
    return tmp_path


def workers(folder: Path, count: int) -> list[Worker]:
    return [
        Worker("sweeps.worker", (str(number),), folder / f"worker-{number}.log", number, count)
        for number in range(count)
    ]


def test_an_array_is_submitted_as_asked(commands: Path) -> None:
    executor = parse_executor(
        {"name": "slurm", "gpus": 2, "cpus": 3, "minutes": 90, "memory_gb": 7, "partition": "long", "warning": 50,
         "setup": ["module load cuda"], "options": {"account": "us", "exclusive": True}}
    )  # fmt: skip
    executor.submit(workers(commands, 2))
    script = (commands / "script").read_text()
    for option in (
        "array=0-1%2", "gres=gpu:2", "cpus-per-task=3", "time=90", "mem=7G", "partition=long", "signal=USR2@50",
        "account=us", "exclusive", "requeue",
    ):  # fmt: skip
        assert f"#SBATCH --{option}\n" in script, option
    assert "\nmodule load cuda\n" in script and "srun" in script and "--cpus-per-task=3" in script
    assert len(list((commands / "slurm").glob("7_*_submitted.pkl"))) == 2


def test_the_end_of_a_task_is_noticed(commands: Path) -> None:
    one, other = Slurm(gpus=0).submit(workers(commands, 2))
    assert "gres" not in (commands / "script").read_text()
    assert (one.poll(), other.poll()) == (None, None)
    (commands / "queue").write_text("7_0|COMPLETING\n7_1|REQUEUED\n")
    assert (one.poll(), other.poll()) == (None, None)
    (commands / "queue").write_text("7_0|OUT_OF_MEMORY\n7_1|PENDING\n")
    assert (one.poll(), other.poll()) == (1, None)
    (commands / "queue").unlink()
    assert (one.poll(), other.poll()) == (1, 1), "Slurm has forgotten the array"
    one.interrupt()
    other.kill()
    asked = (commands / "asked").read_text().splitlines()
    assert asked[-2:] == ["scancel 7_0", "scancel --signal=KILL --full 7_1"]


def test_a_slurm_that_says_nothing_changes_nothing(commands: Path) -> None:
    (handle,) = Slurm().submit(workers(commands, 1))
    (commands / "queue").write_text("7|FAILED\n")
    (commands / "bin" / "squeue").write_text("#!/bin/sh\necho Unable to contact slurm controller >&2; exit 1\n")
    assert handle.poll() is None
    assert read_states("7|FAILED\n\n") == {"7": "FAILED"}


def test_slurm_that_refuses_or_is_not_here_is_one_error(commands: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (commands / "bin" / "sbatch").write_text(
        "#!/bin/sh\necho sbatch: error: invalid partition specified: x >&2; exit 1\n"
    )
    with pytest.raises(EvaluationError, match=r"Slurm refuses the workers: .*invalid partition specified: x"):
        Slurm(partition="x").submit(workers(commands, 2))
    monkeypatch.setenv("PATH", str(commands))
    with pytest.raises(ConfigError, match="no command sbatch, srun, squeue, scancel on PATH"):
        Slurm().submit(workers(commands, 1))


PROGRAM = """
import os, signal, sys, time
def main(arguments):
    print("argument", *arguments, os.environ["OMP_NUM_THREADS"])
    if arguments[0] == "waits":
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(60)
    if arguments[0] == "leaves":
        sys.exit("no such model")
    return 4
"""


@pytest.mark.parametrize(("argument", "code"), [("works", 4), ("waits", "left with 130"), ("leaves", 1)])
def test_a_task_runs_the_program_and_keeps_its_output(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, argument: str, code: Any
) -> None:
    (tmp_path / "program_of_test.py").write_text(PROGRAM)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1,3")
    kept, handler = (os.dup(1), os.dup(2)), signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(sys, "stdout", sys.__stdout__)  # the file itself, which the task redirects
    environment = dict(os.environ)
    try:
        task = Task(Worker("program_of_test", (argument,), tmp_path / "log"), 3)
        found: Any = task()
    except SystemExit as end:  # then submitit writes no result
        found = f"left with {end.code}"
    finally:
        for number, file in enumerate(kept, start=1):
            os.dup2(file, number)
            os.close(file)
        signal.signal(signal.SIGTERM, handler)
        os.environ.update(environment)
        for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
            if name not in environment:
                os.environ.pop(name, None)
    assert found == code
    assert "GPUs 1,3" in (tmp_path / "log").read_text()
    assert isinstance(task.checkpoint(), DelayedSubmission)


@pytest.mark.parametrize(
    ("since", "again"), [("2026-03-01T12:00:00", True), ("None", False), ("Unknown", False), (None, False)]
)
def test_a_task_that_is_preempted_asks_to_be_queued_again(
    commands: Path, monkeypatch: pytest.MonkeyPatch, since: str | None, again: bool
) -> None:
    told = "JobId=9 JobState=RUNNING PreemptEligibleTime=2026-03-01T11:59:58 " + (
        f"PreemptTime={since}" if since else ""
    )
    script = commands / "bin" / "scontrol"
    script.write_text(
        f'#!/bin/sh\necho scontrol "$@" >> {shlex.quote(str(commands))}/asked\necho {shlex.quote(told)}\n'
    )
    script.chmod(0o755)
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    come_again()
    assert not (commands / "asked").exists(), "not a task of Slurm"
    monkeypatch.setenv("SLURM_JOB_ID", "9")
    come_again()
    asked = (commands / "asked").read_text().splitlines()
    assert asked == ["scontrol --oneliner show job 9", *(["scontrol requeue 9"] if again else [])]
