"""Methods as they are spelled on the command line."""

import pytest

from bench.settings.method_settings import MethodConfig, parse_method
from methods.framework.errors import ConfigError


def test_method_on_the_command_line() -> None:
    assert parse_method("reap") == MethodConfig(name="reap")
    parsed = parse_method("expert_drop:scope=global,keep=0.5,min_experts=2")
    assert parsed.knobs == {"scope": "global", "keep": 0.5, "min_experts": 2}
    assert parse_method("reap:keep=0.3/0.5/0.7").configured().keep == (0.3, 0.5, 0.7)
    with pytest.raises(ConfigError, match="knob=value"):
        parse_method("reap:keep")
