"""Tiny models, opened once for all tests of the calibration, with what loops and hooks say of them."""

from __future__ import annotations

from functools import cache

import pytest

from bench.applying.apply import apply
from bench.calibration.calibrate import calibrate
from bench.checkpoint.checkpoint import Checkpoint
from methods.framework.layer_plan import LayerPlan, Merge
from methods.framework.plan import Plan
from tests.support.calibration_reference import ExpertReference, reference
from tests.support.inside_reference import inside_reference
from tests.support.streamed_pass import RAGGED, SQUARE, plain_model
from tests.support.tiny import tiny_checkpoint


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """Return a function from a family to its tiny checkpoint, which tests only read."""

    @cache
    def opened(family):
        return Checkpoint.open(tiny_checkpoint(family, tmp_path_factory.mktemp(family)))

    return opened


@pytest.fixture(scope="session")
def qwen(tiny):
    return tiny("qwen3_moe")


@pytest.fixture(scope="session")
def mapped(tiny, tmp_path_factory):
    """A checkpoint, only read, whose layer 1 has two experts and three constants behind a map of its eight router rows."""
    source = tiny("qwen2_moe")
    merge = Merge(into=0, members=(0, 1, 2, 3), weights=(0.4, 0.3, 0.2, 0.1))
    layer = LayerPlan(experts=(0, 6), merges=(merge,), constants=(4, 5, 7), router="map")
    plan = Plan.of(source.inventory, [LayerPlan(), layer, LayerPlan()])
    moments = calibrate(source, SQUARE, {"routed_output_mean"})
    return Checkpoint.open(apply(source, plan, tmp_path_factory.mktemp("mapped") / "mapped", moments=moments))


@pytest.fixture(scope="session")
def expected(tiny):
    """Return a function to all statistics of a family's tiny model on the ragged corpus, {name: {layer: value}}.

    It takes the family, how many tokens are sampled, and how many of these are compared.
    """

    @cache
    def everywhere(family):
        checkpoint, windows = tiny(family), sorted(RAGGED.windows, key=len)
        router = checkpoint.inventory.router
        values = reference(plain_model(checkpoint), windows, router.score == "sigmoid")
        experts = ExpertReference(plain_model(checkpoint), windows, router, 2)
        return {**values, **experts.of_all(), **inside_reference(plain_model(checkpoint), windows)}, experts

    @cache
    def of(family, sampled, compared):
        values, experts = everywhere(family)
        return {**values, **experts.of_samples(sampled, compared)}

    return of
