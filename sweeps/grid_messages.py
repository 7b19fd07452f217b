"""What a grid and its workers tell each other: lines of JSON over a socket.

The address and a password lie in a file in a folder that only the user can read. A worker whose grid is gone, and a grid whose
worker is gone, notice that the socket is closed.
"""

from __future__ import annotations

import hmac
import io
import json
import queue
import secrets
import socket
import socketserver
import threading
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

from bench.store.store import write_json

_IDLE, _INTERVAL, _PROBES = 30, 10, 3
"""Seconds until a silent peer is asked for a sign of life, seconds between askings, and how many may stay unanswered."""


class Message(NamedTuple):
    """What a worker told.

    Args:
        worker: its number.
        content: None when the connection is gone.
    """

    worker: int
    content: dict[str, Any] | None


class Switchboard:
    """The grid's end: listens for workers; a context manager."""

    def __init__(self, host: str) -> None:
        """Listen on a free port of ``host``."""
        self._password = secrets.token_hex(16)
        self._heard: queue.Queue[Message] = queue.Queue()
        self._lines: dict[int, io.BufferedIOBase] = {}
        board = self

        class Handler(socketserver.StreamRequestHandler):
            def handle(self) -> None:
                board._listen(self)

        self._server = socketserver.ThreadingTCPServer((host, 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.1,), daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()

    def write_address(self, path: Path, **content: Any) -> None:
        """Write the file that workers are started with: where to report, and ``content``."""
        host, port = self._server.server_address[:2]
        write_json(path, {"host": host, "port": port, "password": self._password, **content})

    def next(self, seconds: float) -> Message | None:
        """Return the next message, or None when none comes within ``seconds``."""
        try:
            return self._heard.get(timeout=seconds)
        except queue.Empty:
            return None

    def tell(self, worker: int, content: Mapping[str, Any] | None) -> None:
        """Send a job to a worker that reported; one that is gone by now is noticed when it is heard."""
        with suppress(OSError, ValueError):  # the latter where the line is just being closed
            _write(self._lines[worker], content)

    def _listen(self, line: socketserver.StreamRequestHandler) -> None:
        keep_alive(line.connection)
        hello = _read(line.rfile)
        if not isinstance(hello, dict) or not hmac.compare_digest(str(hello.get("password")), self._password):
            return
        worker = int(hello["worker"])
        self._lines[worker] = line.wfile
        self._heard.put(Message(worker, {"kind": "ready"}))
        while (content := _read(line.rfile)) is not None:
            self._heard.put(Message(worker, content))
        if self._lines[worker] is line.wfile:  # otherwise the worker was started again, and has reported since
            self._heard.put(Message(worker, None))


class Line:
    """A worker's end; a context manager."""

    def __init__(self, address: Mapping[str, Any], worker: int) -> None:
        """Report to the grid.

        Args:
            address: content of the file that ``Switchboard.write_address`` wrote.
            worker: own number.

        Raises:
            OSError: the grid does not answer.
        """
        self._socket = socket.create_connection((address["host"], address["port"]))
        keep_alive(self._socket)
        self._file = self._socket.makefile("rwb")
        self.tell(password=address["password"], worker=worker)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        with suppress(OSError):
            self._file.close()
        self._socket.close()

    def tell(self, **content: Any) -> None:
        """Send a message.

        Raises:
            OSError: the grid is gone.
        """
        _write(self._file, content)

    def job(self) -> dict[str, Any] | None:
        """Wait for the next job, and return None when there are no more or the grid is gone."""
        job: dict[str, Any] | None = _read(self._file)
        return job


def keep_alive(line: socket.socket) -> None:
    """Ask a silent peer for signs of life, so that a machine that died is noticed; nothing else would tell."""
    line.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (("TCP_KEEPIDLE", _IDLE), ("TCP_KEEPINTVL", _INTERVAL), ("TCP_KEEPCNT", _PROBES)):
        if hasattr(socket, name):
            line.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def _write(file: Any, content: Any) -> None:
    file.write(json.dumps(content).encode() + b"\n")
    file.flush()


def _read(file: Any) -> Any:
    """Return the next line's value; None at the end, which may come in the middle of a line."""
    try:
        line = file.readline()
        return json.loads(line) if line.endswith(b"\n") else None
    except (OSError, ValueError):
        return None
