"""Processes on this machine."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest

from sweeps.executor import Worker, stop, wait
from sweeps.executors.local import Local, environment
from tests.support.sweep_forks import wait_for

TELLS = """
import json, os, sys
names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "CUDA_VISIBLE_DEVICES")
print(json.dumps([sys.argv[1:], os.getcwd(), {name: os.environ.get(name) for name in names}]))
sys.exit(3)
"""
SLEEPS = """
import sys, time
try:
    print("up", flush=True)
    time.sleep(600)
except KeyboardInterrupt:
    if sys.argv[1:]:
        sys.exit(130)
    print("stays", flush=True)
    time.sleep(600)
"""


def worker(folder: Path, monkeypatch: pytest.MonkeyPatch, code: str, *arguments: str, number: int = 0) -> Worker:
    name = f"worker_of_test_{number}"
    (folder / f"{name}.py").write_text(code)
    monkeypatch.setenv("PYTHONPATH", str(folder), prepend=os.pathsep)
    return Worker(name, arguments, folder / f"{number}.log", number=number, count=2, threads=5)


def test_workers_get_their_arguments_threads_and_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,7")
    workers = [worker(tmp_path, monkeypatch, TELLS, "a b", str(number), number=number) for number in range(2)]
    handles = Local().submit(workers)
    wait(handles, 60)
    assert [handle.poll() for handle in handles] == [3, 3]
    for number, gpu in enumerate("47"):
        told = json.loads((tmp_path / f"{number}.log").read_text())
        variables = {"OMP_NUM_THREADS": "5", "MKL_NUM_THREADS": "5", "CUDA_VISIBLE_DEVICES": gpu}
        assert told == [["a b", str(number)], os.getcwd(), variables]


def test_the_share_of_the_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 12)
    one, four = (Worker("m", (), tmp_path, number=1, count=count) for count in (1, 4))
    assert environment({}, four)["OMP_NUM_THREADS"] == "3"
    assert environment({"OMP_NUM_THREADS": "9"}, four)["OMP_NUM_THREADS"] == "9", "what the user set stays"
    assert "CUDA_VISIBLE_DEVICES" not in environment({}, four)
    assert environment({"CUDA_VISIBLE_DEVICES": "0,1"}, one)["CUDA_VISIBLE_DEVICES"] == "0,1", "alone, it may take all"


def test_workers_are_asked_to_stop_and_then_not_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    polite, stubborn = (worker(tmp_path, monkeypatch, SLEEPS, *("polite",)[:count], number=count) for count in (1, 0))
    handles = Local().submit([polite, stubborn])
    wait_for(lambda: all("up" in one.log.read_text() for one in (polite, stubborn)))
    stop(handles, patience=2.0)
    assert [handle.poll() for handle in handles] == [130, -signal.SIGKILL]
    assert "stays" in stubborn.log.read_text()
