"""What is trained is the model that is evaluated: types of memory and of files stay, and so do the settings of generation."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from bench.applying.apply import apply
from bench.checkpoint.checkpoint import Checkpoint
from bench.models.load import load_model
from bench.recovery import recover as module
from bench.recovery.recover import recover
from methods.framework.layer_plan import LayerPlan
from tests.support.inside_plans import everywhere, fitting
from tests.support.inside_slowly import drawn_moments
from tests.support.published import CORRECTION, dtypes, published
from tests.support.recoveries import changed, settings, write_text

PLANS = {"selected": LayerPlan(experts=(0, 2, 5, 7)), "factors": fitting("factors", {})}


@pytest.mark.parametrize("kind", ["full", "lora", "router_kd"])
@pytest.mark.parametrize("name", PLANS)
def test_types_and_settings_stay(name: str, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = published("deepseek_v3", tmp_path / "source")
    plan, moments = everywhere(source.inventory, PLANS[name]), drawn_moments(source.inventory)
    student = Checkpoint.open(apply(source, plan, tmp_path / "student", moments=moments))
    trained: list[dict[str, torch.dtype]] = []
    write = module.write_recovered

    def seen(checkpoint: Checkpoint, model: torch.nn.Module, *rest: object) -> None:
        trained.append(dtypes(model))
        write(checkpoint, model, *rest)

    monkeypatch.setattr(module, "write_recovered", seen)
    given = settings(kind, write_text(tmp_path / "ids.npy"), steps=2, dtype="bfloat16")
    done = recover(student.path, given, teacher=source.path, store_folder=tmp_path / "store")
    result, before = Checkpoint.open(done.path), load_model(student.path, torch.bfloat16)
    assert trained == [dtypes(before)]
    assert {kept for one, kept in trained[0].items() if one.endswith(CORRECTION)} == {torch.float32}
    assert result.inventory == student.inventory, "a tensor was written in another type"
    after = load_model(result.path, torch.bfloat16)
    assert dtypes(after) == dtypes(before)
    assert after.generation_config.to_dict() == before.generation_config.to_dict()
    differ = changed(student, result)
    assert differ and not any(entry.name.endswith(CORRECTION) for entry in differ)
