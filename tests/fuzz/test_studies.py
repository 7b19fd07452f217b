"""A study's journal and a recipe may hold anything: what reads them gives a study or settings, or one of our errors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from bench.running.recipe import Recipe
from bench.settings.method_settings import RecipeConfig
from bench.settings.strict import load_settings
from sweeps.asking import draws
from sweeps.heartbeat import PROCESS, signature
from sweeps.journal import JOURNAL, missing_trials, open_study, reap, running
from sweeps.outcome import outcome
from sweeps.sweep_config import SweepConfig, parse_sweep
from tests.fuzz.strangers import JSON, bounded, damaged, spoiled, text_of
from tests.fuzz.test_readers import SWEEP, ours

pytestmark = pytest.mark.thorough

CONFIG = parse_sweep(SWEEP)
RECIPE = {
    "title": "both",
    "steps": [
        {"name": "reap", "knobs": {"keep": 0.5}},
        {"name": "svd", "knobs": {"keep": 0.5}, "recalibrate": True},
    ],
}


def read(config: SweepConfig, folder: Path) -> int:
    """Open a study and ask it for everything that a worker and a report ask for."""
    study = open_study(config, folder)
    reap(study)
    outcome(config, study, folder)
    return missing_trials(study, config.trials) + running(study) + draws(study)


@pytest.fixture(scope="module")
def journal(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The journal of a study with a complete, a failed and a running trial."""
    folder = tmp_path_factory.mktemp("study")
    study = open_study(CONFIG, folder)
    for value in (0.5, None):
        trial = study.ask()
        trial.suggest_float("keep", 0.1, 1.0)
        if value is not None:
            found = {"plan": "a" * 64, "knobs": {"keep": 0.5}, "scores": {"bytes_kept": value}, "sizes": {"bytes": 7}}
            trial.set_user_attr("result", {**found, "seconds": 0.5, "same_as": None})
            study.tell(trial, value)
        else:
            trial.set_user_attr("reason", "why")
            study.tell(trial, state=_failed())
    study.ask().set_user_attr(PROCESS, signature())
    (folder / "plans").mkdir()
    (folder / "plans" / f"{'a' * 64}.json").write_text("{}")
    assert read(CONFIG, folder) >= 2
    return (folder / JOURNAL).read_bytes()


def _failed() -> Any:
    from optuna.trial import TrialState

    return TrialState.FAIL


@bounded
@given(data=st.data())
def test_journals(tmp_path: Path, journal: bytes, data: st.DataObject) -> None:
    folder = tmp_path / str(len(list(tmp_path.iterdir())))
    folder.mkdir()
    lines = journal.splitlines(keepends=True)
    place = data.draw(st.integers(0, len(lines) - 1))
    changed = data.draw(
        st.one_of(
            damaged(lines[place]),
            spoiled(json.loads(lines[place])).map(lambda document: text_of(document) + b"\n"),
            JSON.map(lambda document: text_of(document) + b"\n"),
        )
    )
    (folder / "plans").mkdir()
    (folder / "plans" / f"{'a' * 64}.json").write_text("{}")
    (folder / JOURNAL).write_bytes(b"".join([*lines[:place], changed, *lines[place + 1 :]]))
    with ours:
        read(CONFIG, folder)


@bounded
@given(data=st.data())
def test_recipes(tmp_path: Path, data: st.DataObject) -> None:
    written = yaml.safe_dump(RECIPE).encode()
    content = data.draw(st.one_of(damaged(written), spoiled(RECIPE).map(text_of), JSON.map(text_of)))
    (tmp_path / "recipe.yaml").write_bytes(content)
    with ours:
        Recipe.configured(load_settings(tmp_path / "recipe.yaml", RecipeConfig))


def test_the_recipe_is_sound_before_it_is_spoiled(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(RECIPE))
    assert len(Recipe.configured(load_settings(tmp_path / "recipe.yaml", RecipeConfig)).steps) == 2
