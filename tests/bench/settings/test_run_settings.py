"""Settings are strict, and what is wrong is said once, with the closest match."""

from pathlib import Path

import pytest

from bench.settings.run_settings import RunConfig
from bench.settings.strict import load_settings
from methods.framework.errors import ConfigError


def written(folder: Path, text: str) -> Path:
    path = folder / "run.yaml"
    path.write_text(text)
    return path


def test_a_file_becomes_settings(tmp_path: Path) -> None:
    text = "model: m\nmethods:\n- {name: reap, knobs: {keep: [0.4, 0.6]}}\nevaluation: {tasks: [a, b], limit: 5}\n"
    config = load_settings(written(tmp_path, text), RunConfig)
    assert config.evaluation.tasks == ("a", "b") and config.timing.enabled
    assert config.methods[0].configured().keep == (0.4, 0.6)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model: m\nmetods: []", "did you mean 'methods'"),
        ("model: m\nevaluation: {task: [a]}", "evaluation: .*did you mean 'tasks'"),
        ("model: m\ntiming: {repeats: 3}", r"timing.repeats: should be at least 5, found 3"),
        ("{}", "model: is missing"),
        ("- a", "settings by name"),
        ("a: [", "not YAML"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_settings(written(tmp_path, text), RunConfig)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        load_settings(tmp_path / "absent.yaml", RunConfig)
