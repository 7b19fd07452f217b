"""What comes from outside is read, or refused at once with one error; never a traceback of another kind, never a wait."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from methods.framework.errors import CheckpointError, MoebenchError
from methods.framework.outside import DEEPEST, an_object, open_regular, parse_json, read_bytes, read_json, read_text


def test_values_are_those_of_the_standard_library(tmp_path: Path) -> None:
    values = {"a": [1, 2.5, None, True, "\u00e4"], "b": {"c": {}}}
    (tmp_path / "x.json").write_text(json.dumps(values))
    assert read_json(tmp_path / "x.json", CheckpointError) == values
    (tmp_path / "marked.json").write_bytes(b"\xef\xbb\xbf{}")  # some editors write a byte order mark
    assert read_json(tmp_path / "marked.json", CheckpointError) == {}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * 5000 + "]" * 5000, "nested more than"),
        ("[" * (DEEPEST + 2) + "]" * (DEEPEST + 2), "nested more than"),
        ("[" * 200_000, "nested more than"),
        ("{", "not valid JSON"),
        ("", "not valid JSON"),
        ('{"a": NaN}', "NaN is not a JSON number"),
        ("[-Infinity]", "-Infinity is not a JSON number"),
        ('{"a": 1, "b": 2, "a": 3}', "key 'a' is given twice"),
        (b"\xff\xfe{}", "not valid JSON"),
    ],
)
def test_broken_json_is_one_error_of_the_asked_kind(text: str | bytes, message: str) -> None:
    with pytest.raises(CheckpointError, match=message) as raised:
        parse_json(text, "config.json", CheckpointError, "fetch it again")
    assert str(raised.value).startswith("config.json") and str(raised.value).endswith("fetch it again")


def test_brackets_as_deep_as_allowed_are_read() -> None:
    values = parse_json("[" * DEEPEST + "]" * DEEPEST, "x", CheckpointError)
    assert str(values).count("[") == DEEPEST


def test_a_pipe_or_device_or_folder_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/zero"), tmp_path):
        with pytest.raises(CheckpointError, match="not a file but a folder, a pipe or a device"):
            read_bytes(path, CheckpointError)
    with pytest.raises(CheckpointError, match=r"cannot read .*missing: No such file"):
        open_regular(tmp_path / "missing", CheckpointError)
    with pytest.raises(CheckpointError, match=r"cannot read .*: File name too long; choose a shorter one"):
        read_text(tmp_path / ("x" * 300), CheckpointError, "choose a shorter one")
    with pytest.raises(CheckpointError, match="embedded null byte"):
        read_text(tmp_path / "a\0b", CheckpointError)


def test_too_long_and_no_text(tmp_path: Path) -> None:
    (tmp_path / "long").write_bytes(b"x" * 101)
    with pytest.raises(CheckpointError, match="has 101 bytes, more than the 100"):
        read_bytes(tmp_path / "long", CheckpointError, longest=100)
    (tmp_path / "latin").write_bytes("\u00e4".encode("latin-1"))
    with pytest.raises(CheckpointError, match="not text in UTF-8"):
        read_text(tmp_path / "latin", CheckpointError)


def test_something_else_than_an_object() -> None:
    assert an_object({"a": 1}, "x", CheckpointError) == {"a": 1}
    for value, name in ((None, "null"), ([], "a list"), ("a", "a str")):
        with pytest.raises(CheckpointError, match=f"x holds {name}, not a JSON object"):
            an_object(value, "x", CheckpointError)


@settings(max_examples=200, deadline=None)
@given(st.one_of(st.binary(max_size=60), st.text(alphabet='[]{}":,0123456789.eE+-ntfaN \\', max_size=60)))
def test_any_bytes_are_values_or_our_error(text: str | bytes) -> None:
    try:
        values = parse_json(text, "x", CheckpointError)
    except MoebenchError:
        return
    assert values == json.loads(text.decode("utf-8-sig") if isinstance(text, bytes) else text)
