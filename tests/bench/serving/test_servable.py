"""What cannot be served has a reason that only small files need."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench.serving.servable import unservable


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({"architectures": ["MixtralForCausalLM"]}, None),
        ({"architectures": ["MoebenchMixtralForCausalLM"], "per_layer_config": {"0": {}}}, None),
        ({"architectures": ["MoebenchJambaForCausalLM"]}, "no class MoebenchJambaForCausalLM"),
        ({"architectures": ["MixtralForCausalLM"], "per_layer_config": {"0": {}}}, "ignores it"),
    ],
)
def test_what_cannot_be_served_has_a_reason(config: dict[str, object], reason: str | None, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    found = unservable(tmp_path)
    assert found is None if reason is None else found is not None and reason in found
