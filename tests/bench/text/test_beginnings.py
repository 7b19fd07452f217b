"""Which experts change between two plans, and that the token really reaches the measurement."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.perf import beginnings
from methods.framework.layer_plan import LayerPlan
from methods.framework.plan import Plan


def test_experts_that_stay_by_one_plan_alone_are_counted() -> None:
    first = Plan(family="mixtral", layers=(LayerPlan(experts=(0, 1)), LayerPlan(experts=(2, 3))))
    second = Plan(family="mixtral", layers=(LayerPlan(experts=(0, 2)), LayerPlan(experts=(2, 3))))
    assert beginnings.changed(first, second) == (1, 4)


def test_the_same_text_begins_with_and_without_the_token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(beginnings, "TOKENS", 64)
    _, _, kept = beginnings.compared("pocket-mixtral", "frequency", 16, tmp_path)
    assert kept == 24
    assert len(list((tmp_path / "cache" / "stats").glob("*.safetensors"))) == 3, (
        "two beginnings and two draws are three texts"
    )
