"""An engine without vLLM for the tests of serving processes: it answers, fails, dies or hangs on request."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any


def preload() -> None:
    if os.environ.get("SERVING_FAKE_BROKEN"):
        raise ImportError("no engine here")


def echo(state: dict[str, Any], value: Any) -> Any:
    state["calls"] = state.get("calls", 0) + 1
    return [value, state["calls"]]


def fail(state: dict[str, Any], message: str) -> None:
    raise ValueError(message)


def die(state: dict[str, Any]) -> None:
    print("RuntimeError: the device fell off", flush=True)
    os._exit(3)


def hang(state: dict[str, Any]) -> None:
    time.sleep(600)


def spawn(state: dict[str, Any]) -> int:
    return subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"]).pid


def cores(state: dict[str, Any]) -> list[int]:
    return sorted(os.sched_getaffinity(0))


def frozen(state: dict[str, Any]) -> list[int]:
    return [gc.get_freeze_count(), len(gc.get_objects())]


VERBS: dict[str, Callable[..., Any]] = {
    "echo": echo,
    "fail": fail,
    "die": die,
    "hang": hang,
    "spawn": spawn,
    "cores": cores,
    "frozen": frozen,
}
