"""Serving processes: started, asked, bound to cores, told apart from their failures, and never left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from bench.serving.engine import Engine
from bench.serving.processes import hardware as device
from bench.serving.processes.client import Worker, Zygote, last_error
from bench.settings.timing_settings import OnlineProtocol
from bench.timing.servers import Server
from methods.framework.errors import TimingError
from tests.support.places import ROOT


@pytest.fixture
def zygote(tmp_path: Path) -> Iterator[Zygote]:
    with Zygote(tmp_path / "logs", module="tests.support.serving_fake") as process:
        yield process


def gone(pid: int) -> bool:
    for _ in range(250):
        try:
            os.kill(pid, 0)
            if "State:\tZ" in Path(f"/proc/{pid}/status").read_text():
                return True
        except OSError:
            return True
        time.sleep(0.02)
    return False


def test_workers_are_bound_to_cores(tmp_path: Path) -> None:
    core = device.allowed_cores()[-1]
    with Zygote(tmp_path / "logs", module="tests.support.serving_fake", cores=(core,)) as process:
        assert process.worker("a").ask("cores", 10) == [core]


def test_workers_are_separate_processes(zygote: Zygote) -> None:
    first, second = zygote.worker("a"), zygote.worker("b")
    assert first.ask("echo", 10, value="x") == ["x", 1]
    assert first.ask("echo", 10, value=[1]) == [[1], 2]
    assert second.ask("echo", 10, value=None) == [None, 1]
    pid = first._pid
    first.close()
    assert gone(pid)
    assert second.ask("echo", 10, value=0) == [0, 2]


def test_workers_do_not_collect_what_was_imported(zygote: Zygote) -> None:
    frozen, watched = zygote.worker("a").ask("frozen", 10)
    assert frozen > 10 * watched


def _failure(worker: Worker, verb: str, timeout: float = 20.0, **arguments: Any) -> str:
    pid = worker._pid
    with pytest.raises(TimingError) as caught:
        worker.ask(verb, timeout, **arguments)
    assert gone(pid)
    return str(caught.value)


def test_failures_of_a_worker_are_told_and_leave_no_process(zygote: Zygote, tmp_path: Path) -> None:
    assert "ValueError: too big" in _failure(zygote.worker("a"), "fail", message="too big")
    assert "the device fell off" in _failure(zygote.worker("b"), "die")
    assert "took longer than 1 s" in _failure(zygote.worker("c"), "hang", timeout=1.0)
    logs = [path.read_text() for path in (tmp_path / "logs").glob("a-*.log")]
    assert len(logs) == 1 and "Traceback" in logs[0]
    dead = zygote.worker("d")
    os.killpg(dead._pid, signal.SIGKILL)
    assert gone(dead._pid)
    assert "before echo" in (told := _failure(dead, "echo", value=1)) or "during echo" in told
    child = zygote.worker("e")
    grandchild = child.ask("spawn", 10)
    assert not _gone_now(grandchild)
    child.close()
    assert gone(grandchild)


def _gone_now(pid: int) -> bool:
    return not Path(f"/proc/{pid}").exists()


def test_engine_that_cannot_be_imported_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SERVING_FAKE_BROKEN", "1")
    with (
        Zygote(tmp_path, module="tests.support.serving_fake") as process,
        pytest.raises(TimingError, match="no engine here"),
    ):
        process.worker("a", 20.0)


def test_nothing_survives_the_parent(tmp_path: Path) -> None:
    script = (
        "import sys, time\nfrom pathlib import Path\nfrom bench.serving.processes.client import Zygote\n"
        f"z = Zygote(Path({str(tmp_path)!r}), module='tests.support.serving_fake')\nw = z.worker('a')\n"
        "print(z._process.pid, w._pid, w.ask('spawn', 10), flush=True)\nw.ask('hang', 600)\n"
    )
    root = ROOT
    parent = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, cwd=root)
    assert parent.stdout is not None
    pids = [int(word) for word in parent.stdout.readline().split()]
    assert len(pids) == 3 and not any(map(_gone_now, pids))
    parent.kill()
    parent.wait()
    parent.stdout.close()
    assert all(map(gone, pids))


def test_last_error_skips_lines_that_only_point_elsewhere(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text(
        "INFO starting\n(Core) ValueError: no kernel for int8 experts\n"
        "RuntimeError: Engine core initialization failed. See root cause above.\n"
    )
    assert last_error(log) == "ValueError: no kernel for int8 experts"
    log.write_text(log.read_text() + "OSError: [Errno 28] No space left on device\n")
    assert last_error(log) == "OSError: [Errno 28] No space left on device"
    assert last_error(tmp_path / "none") == ""


def test_cores_are_chosen_by_load_and_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "allowed_cores", lambda: (0, 1, 2, 5))
    monkeypatch.setattr(device, "_sibling_rank", lambda core: int(core == 2))
    monkeypatch.setattr("psutil.cpu_percent", lambda interval, percpu: [90.0, 10.0, 0.0, 0.0, 0.0, 30.0])
    assert device.choose_cores(1) == (1,)
    assert device.choose_cores(2) == (1, 5)
    assert device.choose_cores(3) == (0, 1, 5), "the second thread of a physical core comes last, though it is idle"
    assert device.choose_cores(4) == device.choose_cores(9) == (0, 1, 2, 5)


def test_gpu_state_tells_what_the_driver_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    class Library:
        NVML_CLOCK_SM, NVML_CLOCK_MEM, NVML_TEMPERATURE_GPU = 1, 2, 0

        class NVMLError(Exception):
            pass

        def nvmlInit(self) -> None:
            pass

        def nvmlDeviceGetHandleByUUID(self, uuid: str) -> str:
            assert uuid == "GPU-ab"
            return "handle"

        def nvmlSystemGetDriverVersion(self) -> bytes:
            return b"1.2"

        def nvmlDeviceGetName(self, handle: str) -> str:
            return f"card of {handle}"

        def nvmlDeviceGetClockInfo(self, handle: str, which: int) -> int:
            return 1000 + which

        def refuse(self, *arguments: Any) -> None:
            raise self.NVMLError("not supported")

        nvmlDeviceGetMaxClockInfo = nvmlDeviceGetEnforcedPowerLimit = refuse
        nvmlDeviceGetTemperature = nvmlDeviceGetCurrentClocksThrottleReasons = refuse

    monkeypatch.setattr(device, "_nvml", Library)
    expected = {"driver": "1.2", "name": "card of handle", "sm_clock_mhz": 1001, "memory_clock_mhz": 1002}
    assert device.gpu_state("ab") == device.gpu_state("GPU-ab") == expected
    monkeypatch.setattr(device, "_nvml", lambda: None)
    assert device.gpu_state() == {}


# Real processes in place of vLLM's server.

_HEALTHY = """
import http.server, subprocess, sys
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
print("child", child.pid, flush=True)
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.end_headers()
        self.wfile.write(b'# HELP\\nvllm:cache_config_info{block_size="16",engine="0",num_gpu_blocks="40"} 1.0\\n')
    def log_message(self, *a): pass
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""
_BROKEN = "import sys; print('RuntimeError: no kernel for this'); print('bye'); sys.exit(3)"


class _Script(Engine):
    """An engine whose server is a script that gets the port as its argument."""

    def __init__(self, script: str) -> None:
        self.script = script

    def server_arguments(self, protocol: OnlineProtocol, port: int) -> list[str]:
        return [str(port)]

    def server_command(self, path: Path, arguments: Sequence[str], cores: tuple[int, ...] = ()) -> list[str]:
        return [sys.executable, "-c", self.script, *arguments]


def _server(tmp_path: Path, script: str) -> Server:
    return Server(tmp_path / "model", OnlineProtocol(rates=(1.0,)), tmp_path / "log", (), _Script(script))


def test_server_answers_and_ends_with_all_that_it_started(tmp_path: Path) -> None:
    server = _server(tmp_path, _HEALTHY)
    try:
        server.wait(30.0)
        assert server.kv_tokens() == 640 and server.cpu_seconds() > 0
        server.check()
        server.pause()
        idle = server.cpu_seconds()
        time.sleep(0.1)
        assert server.cpu_seconds() == idle and "State:\tT" in Path(f"/proc/{server._group}/status").read_text()
        server.resume()
        server.wait(30.0)
        child = int((tmp_path / "log").read_text().split()[1])
        assert Path(f"/proc/{child}").exists()
    finally:
        server.close()
    assert gone(child) and gone(server._group) and gone(server._process.pid)
    with pytest.raises(TimingError, match="ended under load"):
        server.check()


def test_server_that_does_not_come_up_tells_the_end_of_its_log(tmp_path: Path) -> None:
    server = _server(tmp_path, _BROKEN)
    with pytest.raises(TimingError, match=r"server of model ended with code 3: RuntimeError: no kernel.*\n.*\nbye"):
        server.wait(30.0)
    server.close()
    slow = _server(tmp_path, "import time; time.sleep(600)")
    with pytest.raises(TimingError, match="did not answer within 1 s"):
        slow.wait(1.0)
    slow.close()
    assert gone(slow._group)


@pytest.mark.parametrize("stopped", [False, True])
def test_command_on_a_leash_ends_with_its_parent(stopped: bool) -> None:
    held = (
        "import os, subprocess, sys, time\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        "print(os.getpid(), child.pid, file=sys.stderr, flush=True)\ntime.sleep(600)"
    )
    script = (
        "import subprocess, sys, time\n"
        f"p = subprocess.Popen([sys.executable, '-m', 'bench.serving.processes.leash', sys.executable, '-c', {held!r}],\n"
        "    stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=1, start_new_session=True)\n"
        "print(p.pid, flush=True)\ntime.sleep(600)\n"
    )
    root = ROOT
    parent = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, cwd=root)
    assert parent.stdout is not None
    leash = int(parent.stdout.readline())
    group, child = (int(word) for word in parent.stdout.readline().split())
    if stopped:
        os.killpg(group, signal.SIGSTOP)
    assert all(Path(f"/proc/{pid}").exists() for pid in (leash, group, child))
    parent.kill()
    parent.wait()
    parent.stdout.close()
    assert all(map(gone, (leash, group, child)))
