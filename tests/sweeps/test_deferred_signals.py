"""A request to end that comes while a lock is released is answered when it is released."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path
from typing import Any

import pytest

from sweeps.deferred_signals import deferred_signals
from sweeps.journal import open_study
from tests.support.tiny_sweeps import sweep


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR2])
def test_the_handler_runs_afterwards(number: signal.Signals) -> None:
    done: list[str] = []
    before = signal.signal(number, lambda *_: done.append("asked"))
    try:
        with deferred_signals():
            signal.raise_signal(number)
            done.append("finished")
        assert done == ["finished", "asked"]
        signal.raise_signal(number)
        assert done == ["finished", "asked", "asked"], "the handler is back in its place"
    finally:
        signal.signal(number, before)


def test_another_thread_does_not_touch_handlers() -> None:
    seen: list[Any] = []

    def inside() -> None:
        with deferred_signals():
            seen.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=inside)
    thread.start()
    thread.join()
    assert seen == [signal.getsignal(signal.SIGTERM)]


def test_a_lock_is_released_before_the_request_is_answered(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = sweep(home)
    study = open_study(config, config.folder(tmp_path))
    unlink = os.unlink

    def interrupted(path: str, **rest: Any) -> None:
        unlink(path, **rest)
        if str(path).endswith(".rename"):
            signal.raise_signal(signal.SIGINT)  # the moment between the removal of the lock and the return

    monkeypatch.setattr(os, "unlink", interrupted)
    with pytest.raises(KeyboardInterrupt):
        study.set_user_attr("asked", 1)
    monkeypatch.undo()
    assert not list(config.folder(tmp_path).glob("*.lock*"))
    assert open_study(config, config.folder(tmp_path)).user_attrs["asked"] == 1
