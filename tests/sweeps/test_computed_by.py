"""A study goes on with what began it: other libraries, or an edit of code that its trials rest on, are named and refused."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from bench.calibration.code_digest import OWN, code_digest, module_digest, statistic_digest
from methods.framework.errors import ConfigError
from sweeps.computed_by import computed_by
from sweeps.journal import JOURNAL, open_study
from sweeps.outcome import SweepResult
from sweeps.resident import Resident
from sweeps.study import run_sweep
from sweeps.sweep_config import SweepConfig
from tests.support.places import ROOT
from tests.support.tiny_sweeps import objectives, sweep


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Copy the files that may be looked at."""
    root: Path = tmp_path_factory.mktemp("tree")
    for package in (*OWN, "analysis"):
        for path in [*(ROOT / package).rglob("*.py"), *(ROOT / package).rglob("*.toml")]:
            copy = root / path.relative_to(ROOT)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, copy)
    return root


def code(config: SweepConfig, root: Path) -> dict[str, str]:
    for digest in (code_digest, statistic_digest, module_digest):
        digest.cache_clear()
    found: dict[str, str] = computed_by(config, root)["code"]
    return found


@pytest.fixture(scope="module")
def searched(home: Path) -> SweepConfig:
    return sweep(
        home,
        method="reap",
        space={"keep": {"knots": 3, "low": 0.1, "high": 1.0}},
        fixed={},
        objectives=objectives(home, "nll", "size"),
    )


@pytest.mark.parametrize(
    ("file", "named"),
    [
        ("methods/criterion.py", {"method reap"}),
        ("bench/calibration/streaming.py", {"statistics"}),
        ("bench/applying/in_memory.py", {"plans in memory"}),
        ("bench/models/load.py", {"statistics", "plans in memory"}),
        ("sweeps/candidate.py", {"trials", "objective nll", "objective bytes_kept"}),
        ("sweeps/samplers/chosen.py", {"trials"}),
        ("sweeps/objectives/nll.py", {"objective nll"}),
        ("sweeps/grid.py", set()),
        ("sweeps/terminal.py", set()),
        ("analysis/frame.py", set()),
        ("bench/commands/live.py", set()),
    ],
)
def test_an_edit_is_named_by_what_rests_on_it(file: str, named: set[str], tree: Path, searched: SweepConfig) -> None:
    before, path = code(searched, tree), tree / file
    text = path.read_text()
    path.write_text(f"{text}\n# a comment\n")
    after = code(searched, tree)
    path.write_text(text)
    assert {name for name in before if after[name] != before[name]} == named


def test_a_search_of_tasks_and_of_probes_rests_on_more(home: Path, searched: SweepConfig) -> None:
    share = {"keep": {"knots": 1, "low": 0.1, "high": 1.0}}
    asking = sweep(home, method="diep", space=share, fixed={"rate": 0.01}, objectives=objectives(home, "nll"))
    assert computed_by(asking)["code"].keys() - computed_by(searched)["code"].keys() == {"method diep", "probe"}


@pytest.mark.parametrize("library", ["torch", "optuna", "scipy"])
def test_another_library_is_named_and_refused(
    library: str, home: Path, resident: Resident, whole: SweepResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(home / "whole", tmp_path, dirs_exist_ok=True)
    import bench.store.versions as versions

    found = versions._version
    monkeypatch.setattr(versions, "_version", lambda name: "99" if name == library else found(name))
    with pytest.raises(
        ConfigError, match=rf"begun with other libraries or code \(libraries\.{library}: was '.*', is '99'\)"
    ):
        run_sweep(sweep(home, trials=7), store=tmp_path, resident=resident)
    finished = run_sweep(sweep(home), store=tmp_path, resident=resident)
    assert finished.count("complete") == 6, "what is finished is shown by whatever shows it"
    monkeypatch.undo()
    assert run_sweep(sweep(home, trials=7), store=tmp_path, resident=resident).count("complete") == 7


def test_other_code_is_named_and_refused(
    home: Path, resident: Resident, whole: SweepResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(home / "whole", tmp_path, dirs_exist_ok=True)

    def edited(config: SweepConfig) -> dict[str, Any]:
        now = computed_by(config)
        return {**now, "code": {**now["code"], "statistics": "edited"}}

    monkeypatch.setattr("sweeps.computed_by.computed_by", edited)
    with pytest.raises(ConfigError, match=r"code\.statistics: was '.*', is 'edited'.*Give the sweep another name"):
        run_sweep(sweep(home, trials=7), store=tmp_path, resident=resident)


def test_a_study_that_does_not_say_what_began_it_is_not_continued(
    home: Path, resident: Resident, whole: SweepResult, tmp_path: Path
) -> None:
    shutil.copytree(home / "whole", tmp_path, dirs_exist_ok=True)
    path = sweep(home).folder(tmp_path) / JOURNAL
    lines = path.read_text().splitlines(keepends=True)
    kept = [line for line in lines if '"computed by"' not in line]
    assert len(kept) == len(lines) - 1
    path.write_text("".join(kept))
    assert open_study(sweep(home), path.parent).user_attrs.keys() == {"identity", "inputs"}
    with pytest.raises(ConfigError, match="does not say which libraries or code"):
        run_sweep(sweep(home, trials=7), store=tmp_path, resident=resident)
