"""Slim, then trim, in one plan: AWQ's scale stays the one that was chosen with all experts."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from bench.applying.apply import apply
from bench.calibration.calibrate import calibrate
from bench.checkpoint.checkpoint import Checkpoint
from bench.text.corpus import Corpus
from methods.framework.compose import compose
from methods.framework.errors import PlanError
from methods.framework.inside import Quantisation
from methods.framework.layer_plan import LayerPlan, Merge
from methods.framework.plan import Plan
from methods.framework.transfer import result
from tests.support.tiny import tiny_checkpoint, tiny_tokens

AWQ = LayerPlan(bits=Quantisation(bits=4, group=8, kernel="awq"))
FEW = LayerPlan(experts=(0, 2, 5, 7))


def everywhere(checkpoint: Checkpoint, plan: LayerPlan) -> Plan:
    moe = checkpoint.inventory.moe_layers
    layers = [plan if index in moe else LayerPlan() for index in range(len(checkpoint.inventory.layers))]
    return Plan.of(checkpoint.inventory, layers)


@pytest.mark.parametrize("family", ["mixtral", "qwen2_moe"])
def test_one_plan_writes_what_two_do_one_after_the_other(family: str, tmp_path: Path) -> None:
    source = Checkpoint.open(tiny_checkpoint(family, tmp_path / "source"))
    slim = everywhere(source, AWQ)
    moments = calibrate(source, Corpus.of(tiny_tokens().tolist(), "random ids"), slim.moments)
    middle = Checkpoint.open(apply(source, slim, tmp_path / "slim", moments=moments))
    trim = everywhere(middle, FEW)
    twice = Checkpoint.open(apply(middle, trim, tmp_path / "twice"))
    both = compose(slim, trim, source.inventory)
    once = Checkpoint.open(apply(source, both, tmp_path / "once", moments=moments))
    assert once.inventory == twice.inventory
    for entry in once.inventory.tensors():
        assert torch.equal(once.read(entry), twice.read(entry)), entry.name
    other = compose(everywhere(source, FEW), everywhere(twice_of(source, tmp_path), AWQ), source.inventory)
    assert other.digest != both.digest, "trim, then slim chooses the scale with the experts that stay"


def twice_of(source: Checkpoint, folder: Path) -> Checkpoint:
    return Checkpoint.open(apply(source, everywhere(source, FEW), folder / "trimmed"))


def test_a_scale_chosen_with_a_merge_that_is_removed_cannot_be_stated(tmp_path: Path) -> None:
    source = Checkpoint.open(tiny_checkpoint("mixtral", tmp_path))
    merge = Merge(into=1, members=(1, 3), weights=(0.5, 0.5))
    merged = everywhere(source, LayerPlan(experts=(0, 1, 2, 4, 5, 6, 7), merges=(merge,), bits=AWQ.bits))
    middle = result(merged, source.inventory)
    without = Plan.of(middle, [LayerPlan(experts=(0, 2, 3))] * len(middle.layers))
    with pytest.raises(PlanError, match="select experts first"):
        compose(merged, without, source.inventory)


def test_members_are_awq_alone() -> None:
    with pytest.raises(ValueError, match="only awq has one"):
        Quantisation(kernel="gptq", members=(0, 1))
    with pytest.raises(ValueError, match="ascending"):
        Quantisation(kernel="awq", members=(1, 0))
