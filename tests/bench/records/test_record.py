"""Records on disk: those of earlier versions read as well, and say what is known of them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench.records.earlier import stages_of
from bench.records.record import read_record, write_record
from tests.support.records import record


@pytest.mark.parametrize(
    ("method", "stages"), [("heapr", ("channels",)), ("block_drop", ("blocks",)), ("recipe", ()), (None, ())]
)
def test_a_record_without_stages_is_known_by_its_method(
    tmp_path: Path, method: str | None, stages: tuple[str, ...]
) -> None:
    path = write_record(record(method, stages=("bits",)), tmp_path)
    document = json.loads(path.read_text())
    assert document.pop("stages") == ["bits"] and stages_of(read_record(path)) == ("bits",)
    path.write_text(json.dumps(document))
    assert read_record(path).stages is None and stages_of(read_record(path)) == stages
