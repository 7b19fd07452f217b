"""The parent's side of serving processes: start them, ask them, and never wait for ever or leave one behind."""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from multiprocessing.connection import Client, Connection
from pathlib import Path
from types import TracebackType
from typing import Any

from methods.framework.errors import TimingError

_ROOT = Path(__file__).resolve().parents[3]
_TELLING = re.compile(r"\b\w*(Error|Exception|Killed|Fault)\b.*")
_EMPTY = re.compile(r"Engine core initialization failed|EngineDeadError|See (root cause|stack trace)", re.I)


def serving_environment(threads: int | None = None) -> dict[str, str]:
    """Return the environment of serving processes; only what is not set already is added.

    Args:
        threads: OpenMP threads, None for the current setting.
    """
    import torch

    # The phases are defined by engine steps, which only an engine inside the worker takes one by one.
    wanted = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1"}
    wanted["NO_PROXY"] = "127.0.0.1,localhost"
    if not torch.cuda.is_available():
        # Spinning OpenMP threads cost up to ten times on a busy machine; binding them fights with the neighbours.
        wanted |= {"OMP_WAIT_POLICY": "passive", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
    environment = {**wanted, **os.environ}
    if threads is not None:
        environment["OMP_NUM_THREADS"] = str(threads)
    path = environment.get("PYTHONPATH")
    environment["PYTHONPATH"] = f"{_ROOT}{os.pathsep}{path}" if path else str(_ROOT)
    return environment


def last_error(log: Path) -> str:
    """Return the last line of ``log`` that names an error, else the last line, else nothing."""
    try:
        lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    except OSError:
        return ""
    telling = [found.group(0) for line in lines if (found := _TELLING.search(line)) and not _EMPTY.search(line)]
    return " ".join((telling or lines or [""])[-1].split())[:300]


def _reason(error: str, log: Path) -> str:
    message = " ".join(error.split())[:300]
    if _EMPTY.search(message):
        message = f"{message} Root cause: {last_error(log) or 'unknown'}"
    return f"{message} (log: {log.name})"


class Worker:
    """One serving process, asked over its connection; every failure is a ``TimingError`` and ends the process."""

    def __init__(self, connection: Connection, log: Path, start_timeout: float) -> None:
        """Wait until the process answers, and send its output to ``log``.

        Args:
            connection: to the process.
            log: file for all that it prints.
            start_timeout: seconds to wait at most.

        Raises:
            TimingError: it does not answer in time, or fails.
        """
        self._connection, self._log, self._pid = connection, log, 0
        self._pid = int(self._receive("start", start_timeout)["pid"])
        self.ask("log", 60.0, path=str(log))

    def ask(self, verb: str, timeout: float, **arguments: Any) -> Any:
        """Send one request and return the answer.

        Raises:
            TimingError: the engine failed, the process died, or ``timeout`` seconds went by.
        """
        try:
            self._connection.send_bytes(json.dumps({"verb": verb, "arguments": arguments}).encode())
        except OSError:
            self.close()
            raise TimingError(f"the serving process had ended before {verb} (log: {self._log.name})") from None
        return self._receive(verb, timeout)

    def _receive(self, verb: str, timeout: float) -> Any:
        try:
            if not self._connection.poll(timeout):
                self.close()
                raise TimingError(f"{verb} took longer than {timeout:.0f} s and was stopped (log: {self._log.name})")
            reply = json.loads(self._connection.recv_bytes())
        except (EOFError, OSError):
            self.close()
            said = last_error(self._log)
            died = f"the serving process died during {verb}" + (f", its last words: {said}" if said else "")
            raise TimingError(f"{died} (log: {self._log.name})") from None
        except BaseException:  # KeyboardInterrupt above all: the request in flight must not go on
            self.close()
            raise
        if "error" in reply:
            self.close()
            raise TimingError(_reason(reply["error"], self._log))
        return reply["ok"]

    def close(self) -> None:
        """End the process and all that it started."""
        self._connection.close()
        if self._pid:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._pid, signal.SIGKILL)
            self._pid = 0


class Zygote:
    """The process that has the engine imported; ``worker`` forks it."""

    def __init__(self, logs: Path, module: str, threads: int | None = None, cores: tuple[int, ...] = ()) -> None:
        """Start importing ``module`` in the background.

        Args:
            logs: folder for the logs of all processes.
            module: what workers do: a module with ``preload`` and ``VERBS``.
            threads: OpenMP threads of the workers, None for the current setting.
            cores: processor cores that all processes are bound to, none to leave them free.
        """
        logs.mkdir(parents=True, exist_ok=True)
        self._logs = logs
        self._folder = Path(tempfile.mkdtemp(prefix="moebench-"))
        self._address = str(self._folder / "serve")
        zygote = [sys.executable, "-m", "bench.serving.processes.zygote"]
        with (logs / "import.log").open("ab") as log:
            self._process = subprocess.Popen(
                [*zygote, "--module", module, "--socket", self._address, "--cores", *map(str, cores)],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                env=serving_environment(threads),
                start_new_session=True,
            )

    def worker(self, name: str, start_timeout: float = 300.0) -> Worker:
        """Fork a worker whose log is ``name`` with a random ending.

        Raises:
            TimingError: the engine cannot be imported, or does not answer within ``start_timeout`` seconds.
        """
        deadline = time.monotonic() + start_timeout
        log = self._logs / f"{name}-{secrets.token_hex(3)}.log"
        while True:
            try:
                connection = Client(self._address, family="AF_UNIX")
                break
            except OSError:
                if self._process.poll() is not None or time.monotonic() > deadline:
                    said = last_error(self._logs / "import.log")
                    raise TimingError(f"the serving process did not start: {said} (log: import.log)") from None
                time.sleep(0.02)
        return Worker(connection, log, deadline - time.monotonic())

    def close(self) -> None:
        """End the zygote and with it all workers that are left."""
        assert self._process.stdin is not None
        self._process.stdin.close()  # workers and zygote watch this pipe
        try:
            self._process.wait(5.0)
        except subprocess.TimeoutExpired:  # still importing
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        shutil.rmtree(self._folder, ignore_errors=True)

    def __enter__(self) -> Zygote:
        """Return the running zygote."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End all processes."""
        self.close()
