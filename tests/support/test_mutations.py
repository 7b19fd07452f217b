"""Planted defects stay in step with the code, and are judged as they should be."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.mutations.defect import Unfit, planted, read_defects, site

pytestmark = pytest.mark.thorough

ROOT = Path(__file__).parents[2]
RUN = "import sys; from tests.support.mutations import __main__ as m, trial; trial.WARM = (); m.LIMIT = 6.0; "
RUN += "sys.exit(m.main(sys.argv[1:]))"
CODE = "def mean(values):\n    total = sum(values)\n    return total / len(values)\n"
TESTS = """
from bench.mean import mean

def test_right():
    assert mean([1.0, 3.0]) == 2.0

def test_wrong_without_any_defect():
    assert mean([1.0]) == 2.0
"""


def toml(name: str, old: str, new: str, test: str = "right") -> str:
    fields = {"id": name, "kind": "k", "where": "bench", "old": old, "new": new, "tests": [f"tests -k '{test}'"]}
    return "[[defect]]\n" + "".join(f"{key} = {json.dumps(value)}\n" for key, value in fields.items())


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A package of one function, two tests of it, and defects of every outcome."""
    for path, text in (("bench/__init__.py", ""), ("bench/mean.py", CODE), ("tests/test_mean.py", TESTS)):
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_text(text)
    defects = tmp_path / "defects"
    defects.mkdir()
    half = ("/ len(values)", "/ (len(values) + 1)")
    outcomes = (
        toml("caught", *half),
        toml("escaped", "sum(values)", "sum(sorted(values))"),
        toml("hung", "    total = sum(values)\n", "    import time\n\n    time.sleep(60)\n"),
        toml("proves-nothing", *half, test="wrong"),
        toml("without-a-test", *half, test="no_such"),
        toml("gone", "median", "mean"),
        toml("twice", "values", "value"),
        toml("no-python", "return", "return return"),
    )
    (defects / "all.toml").write_text("\n".join(outcomes))
    return tmp_path


def test_every_defect_can_be_planted() -> None:
    defects = read_defects()
    assert len(defects) >= 60
    for defect in defects:
        site(defect, ROOT)
        missing = [one for one in defect.tests if not (ROOT / one.split()[0]).exists()]
        assert not missing, f"{defect.id}: there is no {missing[0]}"


def test_a_defect_is_planted_and_removed(tree: Path) -> None:
    defect = read_defects(tree / "defects")[0]
    with pytest.raises(ZeroDivisionError), planted(defect, tree) as path:
        assert path.read_text() == CODE.replace("/ len(values)", "/ (len(values) + 1)")
        raise ZeroDivisionError
    assert path.read_text() == CODE


def test_defects_that_fit_nowhere_or_in_two_places_are_named(tree: Path) -> None:
    defects = {one.id: one for one in read_defects(tree / "defects")}
    for name, reason in (("gone", "0 times"), ("twice", "3 times"), ("no-python", "cannot be read")):
        with pytest.raises(Unfit, match=reason):
            site(defects[name], tree)


def test_verdicts(tree: Path) -> None:
    before = {"caught": "caught", "escaped": "caught", "gone": "caught", "twice": "escaped"}
    results = {name: {"verdict": verdict} for name, verdict in before.items()}
    (tree / "before.json").write_text(json.dumps({"results": results}))
    command = [sys.executable, "-c", RUN, "--tree", str(tree), "--defects", str(tree / "defects")]
    command += ["--json", str(tree / "after.json"), "--compare", str(tree / "before.json")]
    environment = {**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    found = {name: one["verdict"] for name, one in json.loads((tree / "after.json").read_text())["results"].items()}
    wanted = {"caught": "caught", "escaped": "escaped", "hung": "hung"}
    assert found == {**wanted, "proves-nothing": "broken", "without-a-test": "broken"}, run.stdout + run.stderr
    assert run.returncode == 1 and "2 of 8 caught, 1 of them by hanging" in run.stdout
    assert [line.split()[1] for line in run.stdout.splitlines() if line.startswith("LOST")] == ["escaped:", "gone:"]
    again = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert "tests without defects" not in again.stdout and again.returncode == 1  # known already, nothing is run
    assert (tree / "bench" / "mean.py").read_text() == CODE
