"""What a sweep file may say about where trials are kept."""

from __future__ import annotations

from pathlib import Path

import pytest

from methods.framework.errors import ConfigError
from sweeps.storage_url import address, resolved_storage, without_password
from tests.support.tiny_sweeps import sweep


@pytest.mark.parametrize(
    ("storage", "told"),
    [
        ("mysql://host/db", "found a storage of kind 'mysql'; allowed: postgresql://"),
        ("study.db", "found a storage of kind 'file'"),
        ("grpc://host", "needs host and port"),
        ("postgresql://user@host", "needs a database"),
        ("postgresql://user@host:high/db", "no URL with a host and a port"),
    ],
)
def test_other_storages_are_refused(tmp_path: Path, storage: str, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        sweep(tmp_path, storage=storage)


@pytest.mark.parametrize("url", ["postgresql://me:sesame@host/db", "postgresql://me@host/db?password=sesame"])
def test_a_password_stays_out_of_files_and_messages(tmp_path: Path, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="write storage: \\$NAME") as error:
        sweep(tmp_path, storage=url)
    assert "sesame" not in str(error.value)
    assert "sesame" not in without_password(f"cannot reach {url}", url)
    config = sweep(tmp_path, storage="$STUDIES")
    with pytest.raises(ConfigError, match="STUDIES is not set"):
        resolved_storage("$STUDIES")
    monkeypatch.setenv("STUDIES", url)
    assert resolved_storage("${STUDIES}") == url and address(url) == ("postgresql", "host", 0)
    assert "sesame" not in config.model_dump_json()
    monkeypatch.setenv("STUDIES", url.replace("postgresql", "oracle"))
    with pytest.raises(ConfigError, match="STUDIES: found a storage of kind 'oracle'") as wrong:
        resolved_storage("$STUDIES")
    assert "sesame" not in str(wrong.value)


def test_where_trials_are_kept_does_not_make_another_study(tmp_path: Path) -> None:
    assert sweep(tmp_path, storage="grpc://host:1", stale_after=5).identity() == sweep(tmp_path).identity()
