"""Run a command and tell what it took: ``python tests/support/timed.py NAME TABLE COMMAND...``.

The wall seconds, and the CPU seconds of the command with all its children, go to standard error and to the end of the file TABLE.
"""

from __future__ import annotations

import resource
import subprocess
import sys
import time
from pathlib import Path


def main(name: str, table: str, *command: str) -> int:
    """Return the exit code of ``command`` after telling what it took."""
    start = time.perf_counter()
    code = subprocess.call(command)
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    line = f"{name:<22}{time.perf_counter() - start:7.0f} s wall {used.ru_utime + used.ru_stime:8.0f} s CPU"
    print(line, file=sys.stderr, flush=True)
    with Path(table).open("a") as file:
        file.write(line + "\n")
    return code


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
