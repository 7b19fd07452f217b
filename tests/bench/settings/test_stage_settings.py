"""Task lists by name."""

from pathlib import Path

from bench.pocket import TASKS
from bench.settings.stage_settings import EvaluationConfig


def test_pocket_stands_for_the_tasks_of_the_pocket_language(tmp_path: Path) -> None:
    found = EvaluationConfig(tasks=("piqa", "pocket"), limit=5).expanded(tmp_path)
    assert found.tasks == ("piqa", *TASKS) and found.limit == 5
    assert found.include_path is not None and list(found.include_path.glob("*.yaml"))


def test_tasks_of_the_users_own_are_left_alone(tmp_path: Path) -> None:
    own = EvaluationConfig(tasks=("pocket",), include_path=tmp_path)
    assert own.expanded(tmp_path) == own
