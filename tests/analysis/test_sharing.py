"""Records that share what they hold alike: nothing changes but the memory."""

from __future__ import annotations

from pathlib import Path

from analysis.load import load
from bench.records.record import read_record, write_record
from tests.support.records import board


def test_loaded_records_are_what_was_written_and_share_texts_and_names_of_fields(tmp_path: Path) -> None:
    written = board()
    for one in written:
        write_record(one, tmp_path)
    loaded = load(tmp_path).records
    assert {one.id: one for one in loaded} == {one.id: one for one in written}
    plain = [read_record(path) for path in sorted(tmp_path.iterdir())]
    assert [one.model_dump_json(exclude_unset=True) for one in loaded] == [
        one.model_dump_json(exclude_unset=True) for one in plain
    ]
    first, second = [one for one in loaded if one.method == "alpha"][:2]
    assert first.scores[0] is not second.scores[0]
    for name in ("task", "digest"):
        assert getattr(first.scores[0], name) is getattr(second.scores[0], name)
    sets = [one.__pydantic_fields_set__ for one in (first.scores[0], second.scores[0], second.scores[1])]
    assert sets[0] is sets[1] is sets[2] and "task" in sets[0]
    changed = first.model_copy(update={"reason": "other"})
    assert "reason" in changed.model_fields_set and changed.reason == "other" and first.reason is None
