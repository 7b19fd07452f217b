"""The page that is served while records come in."""

from __future__ import annotations

import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from analysis.watching import Watched
from bench.records.record import write_record
from methods.framework.errors import ConfigError
from tests.support.records import record


@pytest.fixture
def watched(tmp_path: Path) -> Watched:
    return Watched([tmp_path / "store"], tmp_path / "out", title="live", floor=0.9)


@pytest.fixture
def address(watched: Watched) -> Iterator[str]:
    with watched.served(0) as found:
        yield found


def got(address: str, **headers: str) -> str:
    with urllib.request.urlopen(urllib.request.Request(address, headers=headers), timeout=30) as answer:
        return str(answer.read().decode())


def refused(address: str, **headers: str) -> int:
    with pytest.raises(urllib.error.HTTPError) as error:
        got(address, **headers)
    return error.value.code


def test_a_record_that_comes_in_makes_a_new_page(
    watched: Watched, address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("analysis.watching._CALM", 0)
    first = watched.refresh()
    assert first is not None and first.records == () and "No records here yet" in got(address)
    assert watched.refresh() is None, "nothing changed"
    assert got(f"{address}version") == "1"
    write_record(record(None), tmp_path / "store" / "records")
    second = watched.refresh()
    assert second is not None and len(second.records) == 1 and second.figures == ()
    page = got(address)
    assert "const version = 2;" in page and "connect-src 'self'" in page and page.rstrip().endswith("</html>")
    assert "const version" not in second.page.read_text(), "the file asks nobody"
    assert got(f"{address}leaderboard.csv") == second.csv.read_text()


def test_many_records_do_not_keep_it_busy(watched: Watched, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter([0.0, 0.0, 0.0, 100.0, 3.0, 401.0, 401.0, 401.0, 401.0])
    monkeypatch.setattr("analysis.watching.time.monotonic", lambda: next(now))
    assert watched.refresh() is not None, "which took a hundred seconds"
    write_record(record(None), tmp_path / "store" / "records")
    assert watched.refresh() is None and watched.version == 1
    assert watched.refresh() is not None and watched.version == 2


def test_it_is_for_this_machine_and_for_what_was_written(watched: Watched, address: str, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("no")
    watched.refresh()
    assert address.startswith("http://127.0.0.1:")
    assert refused(address, Host="evil.example:80") == 403
    assert refused(f"{address}../secret") == 404 and refused(f"{address}figures/") == 404
    port = int(address.rstrip("/").rpartition(":")[2])
    with pytest.raises(ConfigError, match=f"cannot serve on port {port} .*--port"), watched.served(port):
        pass
