"""The benchmark of planning goes on where it stopped, and keeps what other sizes and tokens say apart."""

import json
import sys
from pathlib import Path

import pytest

from bench.perf import planning


def test_it_goes_on_with_the_methods_that_are_lacking(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, tried = tmp_path / "results.json", []
    real = planning.measured

    def noted(name: str, *rest: object) -> dict[str, object]:
        tried.append(name)
        return real(name, *rest)  # type: ignore[arg-type]  # the arguments of the real one

    monkeypatch.setattr(planning, "measured", noted)
    for methods in ("layer_drop", "layer_drop,naee,random"):
        monkeypatch.setattr(sys, "argv", ["planning", "--methods", methods, "--json", str(path)])
        with pytest.raises(SystemExit) as left:
            planning.main()
        assert not left.value.code, "no bar is missed"
    assert tried == ["layer_drop", "naee", "random"]
    rows = {row["method"]: row for row in json.loads(path.read_text())["rows"]}
    assert "refused" in rows["naee"] and 0 < rows["layer_drop"]["bytes"] < rows["random"]["bytes"]
    assert len(planning.kept_rows(path, "48x128", 4096)) == 3
    assert planning.kept_rows(path, "61x384", 4096) == planning.kept_rows(path, "48x128", 128) == []
