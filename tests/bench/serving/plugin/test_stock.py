"""Every family has a class in the plug-in."""

from __future__ import annotations

from bench.families.family import families, family_named, family_of
from bench.serving.plugin import STOCK
from tests.support.tiny import FAMILIES, tiny_config


def test_every_family_has_a_class() -> None:
    assert {family_of(tiny_config(name).to_dict()).architecture for name in FAMILIES} <= set(STOCK)
    served = {family_named(name).architecture for name in families() if family_named(name).file.vllm is not None}
    assert set(families()) >= set(FAMILIES) and served == set(STOCK)
