"""What gives a row another name: an update of a library, an edit of code that it rests on, another tokenizer; nothing else."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bench.calibration.code_digest import OWN, code_digest, statistic_digest
from bench.checkpoint.checkpoint import Checkpoint
from bench.running.identity import own_key, shared_key
from bench.settings.method_settings import MethodConfig
from bench.settings.recovery import RecoverySettings
from bench.settings.stage_settings import CalibrationConfig
from bench.store.store import digest_of
from methods.framework.method import Method
from methods.registry import method_class
from tests.bench.running.test_run import REAP, TASKS, config, execute
from tests.support.places import ROOT

ROWS: dict[str, tuple[Method | None, RecoverySettings | None]] = {
    "base": (None, None),
    "reap": (method_class("reap")(), None),
    "diep": (method_class("diep")(), None),
    "trained": (method_class("reap")(), RecoverySettings(kind="full")),
}


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


def names(root: Path) -> dict[str, str]:
    """Return the digest of each row, of code below ``root``."""
    for digest in (code_digest, statistic_digest):
        digest.cache_clear()
    settings = config(root)
    shared = shared_key(settings, "content", {}, root)
    return {
        row: digest_of(shared | own_key(settings, method, recovery, None, root))
        for row, (method, recovery) in ROWS.items()
    }


@pytest.fixture(scope="module")
def before(tree: Path) -> dict[str, str]:
    return names(tree)


@pytest.mark.parametrize(
    ("file", "renamed"),
    [
        ("bench/evaluation/scores.py", {"base", "reap", "diep", "trained"}),
        ("bench/models/load.py", {"base", "reap", "diep", "trained"}),
        ("bench/calibration/streaming.py", {"reap", "diep", "trained"}),
        ("bench/applying/shards.py", {"reap", "diep", "trained"}),
        ("methods/criterion.py", {"reap", "trained"}),
        ("methods/diep.py", {"diep"}),
        ("bench/probing/questions.py", {"diep"}),
        ("bench/recovery/loop.py", {"trained"}),
        ("analysis/frame.py", set()),
        ("bench/commands/live.py", set()),
        ("bench/timing/offline.py", set()),
    ],
)
def test_an_edit_renames_the_rows_that_rest_on_it(
    file: str, renamed: set[str], tree: Path, before: dict[str, str]
) -> None:
    path = tree / file
    text = path.read_text()
    path.write_text(f"{text}\n# a comment\n")
    after = names(tree)
    path.write_text(text)
    assert {row for row in ROWS if after[row] != before[row]} == renamed


@pytest.mark.parametrize("library", ["torch", "transformers", "tokenizers", "lm_eval", "numpy", "scipy", "peft"])
def test_an_update_renames_every_row_that_it_computes(
    library: str, tree: Path, before: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = _version_of()
    monkeypatch.setattr("bench.store.versions._version", lambda name: "99" if name == library else found(name))
    after = names(tree)
    renamed = {"trained"} if library == "peft" else set(ROWS)
    assert {row for row in ROWS if after[row] != before[row]} == renamed


def _version_of() -> Callable[[str], Any]:
    import bench.store.versions

    return bench.store.versions._version


def test_after_an_update_everything_is_scored_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (old,), _ = execute(config(tmp_path), tmp_path)
    scores = tmp_path / "cache" / "scores"
    assert len(list(scores.iterdir())) == len(TASKS)
    found = _version_of()
    monkeypatch.setattr("bench.store.versions._version", lambda name: "99" if name == "torch" else found(name))
    (new,), seen = execute(config(tmp_path), tmp_path)
    assert new.id != old.id and "base: evaluate" in seen and len(list(scores.iterdir())) == 2 * len(TASKS)


def test_another_tokenizer_is_another_model_from_base_to_record(tmp_path: Path) -> None:
    """The same command on the same store serves nothing old, and compressed models are scored with the new tokenizer."""
    model, store = tmp_path / "model", tmp_path / "store"
    shutil.copytree(Checkpoint.open("pocket-mixtral").path, model)
    calibration = CalibrationConfig(corpus=str(ROOT / "docs" / "design.md"), sequences=4, length=32)
    frequency = MethodConfig(name="frequency")
    settings = config(tmp_path, REAP, frequency, model=str(model), calibration=calibration)
    old, _ = execute(settings, store)
    path = model / "tokenizer.json"
    document = json.loads(path.read_text())
    vocabulary = document["model"]["vocab"]
    words = sorted((word for word in vocabulary if word.isalpha()), key=vocabulary.__getitem__)
    document["model"]["vocab"] |= {
        word: vocabulary[other] for word, other in zip(words, words[1:] + words[:1], strict=True)
    }
    path.write_text(json.dumps(document))
    new, seen = execute(settings, store)
    fresh, _ = execute(settings, tmp_path / "fresh")
    assert {one.id for one in old}.isdisjoint(one.id for one in new) and "REAP: evaluate" in seen
    told = [[score.value for score in one.scores] for one in new]
    assert told == [[score.value for score in one.scores] for one in fresh], "as a store that never saw the old one"
    assert told != [[score.value for score in one.scores] for one in old]
    written = {folder.name: (folder / "tokenizer.json").read_text() for folder in (store / "checkpoints").iterdir()}
    new_content = Checkpoint.open(model).content[:12]
    mine = [text for name, text in written.items() if name.startswith(new_content)]
    assert mine and set(mine) == {path.read_text()}
