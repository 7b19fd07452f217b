"""Processes that end, with all that they started, when their parent does.

``python -m bench.serving.processes.leash COMMAND ...`` runs a command in a session of its own, writes the number of its process
group to standard output, and kills the group when standard input closes; it works for a group that is stopped, too.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence


def kill(group: int) -> None:
    """Kill a process group, if there is any left of it."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(group, signal.SIGKILL)


def _kill_when_closed(group: int) -> None:
    select.select([0], [], [])
    kill(group)


def die_with_parent() -> None:
    """Kill this process group as soon as the pipe on standard input closes; nobody may write to that pipe."""
    threading.Thread(target=_kill_when_closed, args=(0,), daemon=True).start()


def main(command: Sequence[str]) -> int:
    """Run ``command`` on a leash and return its exit code; its output goes to standard error."""
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=2, stderr=2, start_new_session=True)
    os.write(1, f"{process.pid}\n".encode())
    threading.Thread(target=_kill_when_closed, args=(process.pid,), daemon=True).start()
    code = process.wait()
    kill(process.pid)  # what the command left behind
    return code if code >= 0 else 128 - code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
