"""What methods say of themselves: every knob tells what it may be and what it does, and values read back as written."""

from __future__ import annotations

import pytest
from pydantic import Field

from bench.settings.method_settings import parse_method
from methods.framework.description import Knob, facts, knobs, summary
from methods.framework.method import LayerwiseMethod
from methods.registry import method_class, names


@pytest.mark.parametrize("name", names())
def test_every_method_describes_itself(name: str) -> None:
    cls = method_class(name)
    assert summary(cls).endswith((".", ":")) and all(facts(cls).values())
    for knob in knobs(cls):
        assert knob.meaning and knob.values, knob
        parsed = parse_method(f"{name}:{knob.name}={knob.default}").configured()
        assert getattr(parsed, knob.name) == cls.model_fields[knob.name].default


def test_kinds_of_knobs() -> None:
    class Told(LayerwiseMethod):
        """Nothing."""

        both: int | None = Field(default=None, ge=1, le=9, description="a")
        open_ended: float = Field(default=0.5, gt=0.25, lt=2.0, description="b")
        flag: bool = False
        """Whether it is
        set."""

    assert knobs(Told)[1:] == (
        Knob("both", "whole number >= 1, <= 9 | null", "null", "a"),
        Knob("open_ended", "number > 0.25, < 2", "0.5", "b"),
        Knob("flag", "true | false", "false", "Whether it is set."),
    )


def test_fixed_knobs_are_left_out_and_shares_are_listed() -> None:
    assert [knob.name for knob in knobs(method_class("reap"))] == ["keep"]
    assert [knob.name for knob in knobs(method_class("criterion"))] == ["keep", "b", "alpha", "beta"]
    assert knobs(method_class("gptq"))[0].values == "0.25 | 0.5 | 1.0"
    assert "over the depth" in knobs(method_class("reap"))[0].values
    assert "over the depth" not in knobs(method_class("layer_drop"))[0].values
