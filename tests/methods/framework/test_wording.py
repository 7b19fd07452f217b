"""Errors of settings without words of pydantic."""

from __future__ import annotations

from typing import Any

import pytest

from bench.settings.method_settings import parse_method
from bench.settings.run_settings import RunConfig
from bench.settings.strict import validated
from methods.framework.errors import ConfigError


@pytest.mark.parametrize(
    ("method", "told"),
    [
        ("reap:keep=2", "method reap, keep: should be at most 1, found 2"),
        ("reap:keep=0.5/2", "method reap, keep.1: should be at most 1, found 2.0"),
        ("reap:keep=x", "method reap, keep: should be a number, found 'x'"),
        ("gptq:act_order=5", "method gptq, act_order: should be true or false, found 5"),
    ],
)
def test_a_knob_is_named_without_the_forms_that_were_tried(method: str, told: str) -> None:
    with pytest.raises(ConfigError) as error:
        parse_method(method).configured()
    assert str(error.value) == told


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"evaluation": {"limit": "x"}}, "evaluation.limit: should be a whole number, found 'x'"),
        ({"evaluation": {"tasks": 5}}, "evaluation.tasks: should be a list, found 5"),
        ({"timing": {"batch": "a"}}, "timing.batch: should be a whole number, found 'a'"),
        (
            {"recovery": {"kind": "no"}},
            "recovery.kind: should be 'lora', 'full', 'router_kd' or 'expert_kd', found 'no'",
        ),
        ({"recipes": [{"title": "", "steps": []}]}, "recipes.0.title: should have 1 or more characters, found ''"),
        ({"recipes": [{"title": "t"}]}, "recipes.0.steps: is missing"),
        ({"plans": [3]}, "plans.0: should be the path of a file or folder, found 3"),
        ({"calibration": {"sequence": 3}}, "calibration: unknown key 'sequence'; did you mean 'sequences'"),
    ],
)
def test_settings_are_named_by_the_keys_that_were_written(changes: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError) as error:
        validated({"model": "m", **changes}, RunConfig, "options")
    assert str(error.value).startswith(f"options: {told}")
