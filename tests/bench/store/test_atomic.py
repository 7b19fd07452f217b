"""One writer for all files: complete or absent, readable by others, never a trace of an attempt that failed."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import bench.store.atomic as atomic_module
from bench.records.derived import write_derived
from bench.records.record import write_record
from bench.store.atomic import atomic_file, open_partial, open_scratch, remove_orphans, settle, write_atomically
from bench.store.store import Store, write_json
from methods.framework.errors import RecordError, StatsError
from tests.support.records import record


@pytest.fixture
def masked() -> Iterator[int]:
    """A umask that lets the group write and others read nothing."""
    before = os.umask(0o007)
    yield 0o660
    os.umask(before)


@pytest.fixture
def full_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(atomic_module.os, "fsync", refused)


def test_every_writer_keeps_to_the_umask(tmp_path: Path, masked: int) -> None:
    written = [
        write_atomically(tmp_path / "a" / "text", "é"),
        write_derived(tmp_path / "b" / "figure.png", b"\x89"),
        write_record(record(), tmp_path / "records"),
    ]
    write_json(tmp_path / "c.json", {"b": 1, "a": [2]})
    file, partial = open_partial(tmp_path)
    with file:
        file.write(b"late")
        settle(file, partial, tmp_path / "array.npy")
    written += [tmp_path / "c.json", tmp_path / "array.npy"]
    assert {stat.S_IMODE(path.stat().st_mode) for path in written} == {masked}
    assert written[0].read_bytes() == "é".encode() and written[-1].read_bytes() == b"late"
    assert (tmp_path / "c.json").read_text() == '{\n "a": [\n  2\n ],\n "b": 1\n}'
    assert not [path for path in tmp_path.rglob(".*")]


@pytest.mark.usefixtures("full_disk")
def test_a_refusal_leaves_what_was_there_and_says_what_to_do(tmp_path: Path) -> None:
    path = tmp_path / "kept"
    path.write_text("before")
    with pytest.raises(StatsError, match=r"cannot write .*kept: No space left on device; buy a disk"):
        write_atomically(path, "after", StatsError, "buy a disk")
    with pytest.raises(RecordError, match="choose another --store"):
        Store(tmp_path).remember("scores", {"a": 1}, {"b": 2})
    with pytest.raises(RecordError, match="choose another folder"):
        write_derived(tmp_path / "page.html", b"")
    with pytest.raises(RecordError, match="choose another --store"):
        write_record(record(), tmp_path)
    assert path.read_text() == "before"
    assert [one for one in tmp_path.rglob("*") if one.is_file()] == [path]


@pytest.mark.usefixtures("full_disk")
def test_what_need_not_survive_a_crash_is_not_waited_for(tmp_path: Path) -> None:
    with atomic_file(tmp_path / "memo", durable=False) as file:
        file.write(b"x")
    assert (tmp_path / "memo").read_bytes() == b"x"


def test_nothing_is_left_of_a_writer_that_fails(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), atomic_file(tmp_path / "out") as file:
        file.write(b"half")
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []


def test_the_name_comes_after_the_bytes_are_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[Any] = []
    path = tmp_path / "out"
    fsync = os.fsync
    monkeypatch.setattr(
        atomic_module.os,
        "fsync",
        lambda descriptor: (order.append((path.exists(), os.fstat(descriptor).st_size)), fsync(descriptor)),
    )
    write_atomically(path, "seven b")
    assert order == [(False, 7)] and path.read_text() == "seven b"


def test_a_record_is_written_once(tmp_path: Path) -> None:
    first = record()
    path = write_record(first, tmp_path)
    content = path.read_bytes()
    with pytest.raises(RecordError, match="write-once"):
        write_record(first.model_copy(update={"title": "Another"}), tmp_path)
    assert path.read_bytes() == content and list(tmp_path.iterdir()) == [path]


def test_scratch_of_a_killed_process_goes_and_that_of_a_living_one_stays(tmp_path: Path) -> None:
    code = "import os, sys, pathlib; from bench.store.atomic import open_scratch; "
    code += "file, _ = open_scratch(pathlib.Path(sys.argv[1])); os.kill(os.getpid(), 9)"
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False)
    file, path = open_scratch(tmp_path)
    assert len(list(tmp_path.iterdir())) == 2
    remove_orphans(tmp_path)
    assert list(tmp_path.iterdir()) == [path]
    file.close()


def test_a_cached_value_that_was_damaged_is_absent(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.remember("timing", {"a": 1}, {"speed": 12.5, "none": float("inf")})
    assert store.recall("timing", {"a": 1}) == {"speed": 12.5, "none": float("inf")}
    (file,) = (tmp_path / "cache" / "timing").iterdir()
    file.write_text(file.read_text().replace("12.5", "13.5"))
    assert store.recall("timing", {"a": 1}) is None
