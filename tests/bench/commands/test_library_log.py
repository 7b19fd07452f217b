"""What libraries say lies in a file; what we say is shown."""

from __future__ import annotations

import logging
import warnings
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from bench.commands.library_log import library_log
from bench.records.mirror import TrackingWarning


def test_libraries_talk_to_a_file_and_we_to_the_user(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    console = Console(record=True, file=StringIO(), width=100)
    own = logging.StreamHandler()
    talker = logging.getLogger("transformers")
    before, propagate = list(talker.handlers), talker.propagate
    talker.handlers, talker.propagate = [own], False
    with library_log(tmp_path, console) as log, warnings.catch_warnings():
        warnings.simplefilter("always")
        assert log.place() == {} and not log.path.exists(), "no file without a message"
        warnings.warn("use the new name", FutureWarning, stacklevel=1)
        warnings.warn("W&B did not take [it]", TrackingWarning, stacklevel=1)
        logging.getLogger("transformers.modeling").warning("tied %s", "weights")
        logging.getLogger("moebench.applying").warning("rounded %d", 3)
        logging.getLogger("datasets").info("nothing")
    assert (talker.handlers, talker.propagate) == ([own], False), "as it was"
    talker.handlers, talker.propagate = before, propagate
    assert console.export_text().splitlines() == ["W&B did not take [it]", "rounded 3"]
    first, second = log.path.read_text().splitlines()
    assert first.endswith("FutureWarning: use the new name") and second.endswith("WARNING: tied weights")
    assert (log.count, log.place()) == (2, {"log": tmp_path / "logs" / "libraries.log"})
    assert capsys.readouterr().err == ""
    with library_log(tmp_path, console) as again:
        logging.getLogger("huggingface_hub").error("gone")
    assert again.count == 1 and len(log.path.read_text().splitlines()) == 3, "it grows from run to run"
