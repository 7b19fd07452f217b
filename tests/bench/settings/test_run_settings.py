"""Settings are strict, and what is wrong is said once, with the closest match."""

from pathlib import Path

import pytest

from bench.pocket import TASKS
from bench.settings.method_settings import MethodConfig, parse_method
from bench.settings.run_settings import RunConfig
from bench.settings.stage_settings import EvaluationConfig
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
        ("model: m\ntiming: {repeats: 3}", r"timing.repeats: .*greater than or equal to 5, found 3"),
        ("{}", "model: Field required"),
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


def test_method_on_the_command_line() -> None:
    assert parse_method("reap") == MethodConfig(name="reap")
    parsed = parse_method("expert_drop:scope=global,keep=0.5,min_experts=2")
    assert parsed.knobs == {"scope": "global", "keep": 0.5, "min_experts": 2}
    assert parse_method("reap:keep=0.3/0.5/0.7").configured().keep == (0.3, 0.5, 0.7)
    with pytest.raises(ConfigError, match="knob=value"):
        parse_method("reap:keep")


def test_pocket_stands_for_the_tasks_of_the_pocket_language(tmp_path: Path) -> None:
    found = EvaluationConfig(tasks=("piqa", "pocket"), limit=5).expanded(tmp_path)
    assert found.tasks == ("piqa", *TASKS) and found.limit == 5
    assert found.include_path is not None and list(found.include_path.glob("*.yaml"))


def test_tasks_of_the_users_own_are_left_alone(tmp_path: Path) -> None:
    own = EvaluationConfig(tasks=("pocket",), include_path=tmp_path)
    assert own.expanded(tmp_path) == own
