"""Every family has a class in the plug-in."""

from __future__ import annotations

from bench.families.family import families, family_named, family_of
from bench.serving.plugin import STOCK
from tests.support.tiny import FAMILIES, tiny_config


def test_every_family_has_a_class() -> None:
    assert {family_of(tiny_config(name).to_dict()).architecture for name in FAMILIES} <= set(STOCK)
    files = [family_named(name).file for name in families()]
    served = {file.architecture: file.vllm for file in files if file.vllm is not None}
    assert set(families()) >= set(FAMILIES) and served.keys() <= STOCK.keys()
    renamed = {file.vllm.architecture for file in files if file.vllm is not None and file.vllm.architecture is not None}
    assert set(STOCK) == served.keys() | renamed and renamed == {"PhiMoEForCausalLM"}
    assert STOCK["PhiMoEForCausalLM"] is STOCK["PhimoeForCausalLM"]
