"""The process that imports the engine once and forks one worker for each connection.

Importing vLLM costs about 15 s, starting a model about 5 s: forking after the import pays the first sum once. Parent,
zygote and workers talk JSON over a local socket. The zygote's standard input is a pipe that nobody writes to: when the
parent ends, however it ends, the pipe closes and zygote and workers kill themselves, so no process is left behind.
"""

from __future__ import annotations

import argparse
import gc
import importlib
import json
import os
import select
import signal
import sys
import traceback
from multiprocessing.connection import Connection, Listener
from typing import Any

from bench.serving.processes.hardware import bind
from bench.serving.processes.leash import die_with_parent


def _serve(connection: Connection, engine: Any) -> None:
    """Answer requests on ``connection`` until it closes, then end the whole process group."""
    os.setpgid(0, 0)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    die_with_parent()
    connection.send_bytes(json.dumps({"ok": {"pid": os.getpid()}}).encode())
    state: dict[str, Any] = {}
    while True:
        try:
            request = json.loads(connection.recv_bytes())
        except (EOFError, OSError):
            break
        verb, arguments = request["verb"], request["arguments"]
        try:
            if verb == "log":
                log = os.open(arguments["path"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
                os.dup2(log, 1)
                os.dup2(log, 2)
                reply: dict[str, Any] = {"ok": None}
            else:
                reply = {"ok": engine.VERBS[verb](state, **arguments)}
        except BaseException as error:  # whatever the engine throws, SystemExit included, becomes the answer
            traceback.print_exc()
            reply = {"error": f"{type(error).__name__}: {error}"}
        sys.stdout.flush()
        sys.stderr.flush()
        connection.send_bytes(json.dumps(reply).encode())
    os.killpg(0, signal.SIGKILL)


def main() -> None:
    """Import the engine, then fork a worker for each connection until the parent's pipe closes."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--module", required=True)
    parser.add_argument("--socket", required=True)
    parser.add_argument("--cores", type=int, nargs="*", default=[])
    arguments = parser.parse_args()
    bind(tuple(arguments.cores))
    # Listening comes before the import, so that the parent can connect at once and wait for the first answer.
    listener = Listener(arguments.socket, family="AF_UNIX", backlog=16)
    descriptor = listener._listener._socket.fileno()  # type: ignore[attr-defined]  # no public way to select on it
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    failure, engine = None, None
    try:
        engine = importlib.import_module(arguments.module)
        engine.preload()
        # What was imported stays: no worker walks through hundreds of thousands of such objects whenever it collects garbage,
        # nor copies the pages that they lie on.
        gc.collect()
        gc.freeze()
    except BaseException as error:  # an import can also end in SystemExit; the parent gets it as an answer
        traceback.print_exc()
        failure = f"{type(error).__name__}: {error}"
    while True:
        ready, _, _ = select.select([descriptor, 0], [], [])
        if 0 in ready:
            return
        connection = listener.accept()
        if failure is not None:
            connection.send_bytes(json.dumps({"error": failure}).encode())
        elif os.fork() == 0:
            listener._listener._socket.close()  # type: ignore[attr-defined]  # closing the listener would unlink it
            _serve(connection, engine)
        connection.close()


if __name__ == "__main__":
    main()
