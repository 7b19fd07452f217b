"""Settings of every test process: no hub, no spinning threads, no progress bars; and the folders that all of them share."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest

from tests.support.built_once import PLACE, changed

if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # so a shell starts jobs in the background
    signal.signal(signal.SIGINT, signal.default_int_handler)
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")


@pytest.fixture(scope="session", autouse=True)
def shared_folders(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Let all workers share what ``tests.support.built_once`` builds, and see that no test changed it."""
    base = tmp_path_factory.getbasetemp()
    root = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "built_once"
    os.environ[PLACE] = str(root)
    yield
    assert changed(root) == [], "a test wrote into a folder that all tests read; give it a copy of its own"
