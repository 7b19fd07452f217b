"""A plan that is realised in memory leaves every tensor the type that it was loaded in."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from bench.applying.apply import apply
from bench.applying.in_memory import realised
from bench.models.load import load_model
from methods.framework.layer_plan import LayerPlan
from tests.support.inside_plans import SELECTIONS, everywhere, fitting
from tests.support.inside_slowly import drawn_moments
from tests.support.masking import logits
from tests.support.published import dtypes, published
from tests.support.tiny import tiny_tokens

PLANS = {
    "selected": LayerPlan(**SELECTIONS["some"]),
    "averaged": LayerPlan(**SELECTIONS["merged"]),
    "mapped": LayerPlan(**{**SELECTIONS["mapped"], "constants": ()}),
    "in few bits": fitting("4 bits", {}),
    "scaled": fitting("scaled inputs", {}),
}


@pytest.mark.parametrize("name", PLANS)
def test_parts_in_float32_stay_and_count(name: str, tmp_path: Path) -> None:
    """Of correction biases that bfloat16 would make equal, the written model and the realised one use the same."""
    groups = (
        {"n_group": 1} if name == "mapped" else {}
    )  # rows that lead to one expert may lie in groups of unequal size
    source = published("deepseek_v3", tmp_path / "source", **groups)
    moments = drawn_moments(source.inventory)
    plan = everywhere(source.inventory, PLANS[name])
    written = load_model(apply(source, plan, tmp_path / "out", moments=moments), torch.bfloat16)
    model = load_model(source.path, torch.bfloat16)
    for one in (written, model):
        one.set_experts_implementation("eager")
    before, plain = dtypes(model), logits(model, tiny_tokens())
    with realised(model, source.inventory, plan, moments):
        inside = logits(model, tiny_tokens())
        assert dtypes(model) == before
    expected = logits(written, tiny_tokens())
    assert dtypes(model) == before
    assert torch.equal(logits(model, tiny_tokens()), plain)
    assert not torch.equal(inside, plain)
    assert torch.equal(inside, expected), (inside - expected).abs().max()
