"""Laws on methods that make all linear layers sparse or store them in few bits, not the routed experts alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import pytest

from bench.laws import decisions, realised
from bench.laws.cases import case
from bench.laws.composition import composition
from bench.laws.elsewhere import same_elsewhere
from methods.framework.method import Method
from methods.quantisation import AWQ, GPTQ, RTN
from methods.slimming import Magnitude, SparseGPT, Wanda

EVERYWHERE = {"scope": "all"}


class EveryMagnitude(Magnitude):
    law_knobs: ClassVar[Mapping[str, Any]] = EVERYWHERE


class EveryWanda(Wanda):
    law_knobs: ClassVar[Mapping[str, Any]] = EVERYWHERE


class EverySparseGPT(SparseGPT):
    law_knobs: ClassVar[Mapping[str, Any]] = EVERYWHERE


class EveryRTN(RTN):
    law_knobs: ClassVar[Mapping[str, Any]] = EVERYWHERE


class EveryGPTQ(GPTQ):
    law_knobs: ClassVar[Mapping[str, Any]] = EVERYWHERE


class EveryAWQ(AWQ):
    law_knobs: ClassVar[Mapping[str, Any]] = EVERYWHERE


class OrderedGPTQ(GPTQ):
    law_knobs: ClassVar[Mapping[str, Any]] = {"scope": "all", "act_order": True, "symmetric": False}


class AsymmetricAWQ(AWQ):
    law_knobs: ClassVar[Mapping[str, Any]] = {"symmetric": False}


CLASSES: tuple[type[Method], ...] = (
    EveryMagnitude,
    EveryWanda,
    EverySparseGPT,
    EveryRTN,
    EveryGPTQ,
    EveryAWQ,
    OrderedGPTQ,
    AsymmetricAWQ,
)
LAWS = (
    decisions.json_round_trip,
    decisions.validity,
    decisions.budget,
    decisions.relabelling,
    decisions.needs_and_stages,
    realised.cost_is_the_file,
    realised.reloads_alike,
)
COVERED = [
    (cls, family)
    for cls in CLASSES
    for family in ("deepseek_v2", "qwen2_moe", "olmoe", "mixtral")
    if cls in (EveryAWQ, EverySparseGPT) or family == "deepseek_v2"
]
"""Latent attention and a dense layer; gated shared experts and biases; values as wide as queries; nothing beside attention."""


@pytest.mark.parametrize(("cls", "family"), COVERED)
def test_laws(cls: type[Method], family: str) -> None:
    for law in LAWS:
        law(cls, case(family))


@pytest.mark.parametrize("cls", [EveryWanda, EveryAWQ])
def test_they_compose(cls: type[Method]) -> None:
    composition(cls, case("deepseek_v2"))


def test_another_process_decides_the_same() -> None:
    same_elsewhere(CLASSES, "deepseek_v2")
