"""What is computed on a GPU is what the processor computes, up to the order of sums. Skipped where there is no GPU."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch

from bench.applying.apply import apply
from bench.calibration.calibrate import calibrate
from bench.checkpoint.checkpoint import Checkpoint
from bench.experts.whole import stored_expert
from bench.models.load import load_model
from bench.models.tiny import tiny_checkpoint, tiny_tokens
from bench.probing.model_probe import ModelProbe
from bench.recovery.recover import recover
from bench.settings.recovery import RecoverySettings
from bench.text.corpus import Corpus
from methods.framework.cost import cost
from methods.framework.plan import Plan
from methods.framework.stats import CATALOGUE, Stats
from methods.registry import method_class, names

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")

FAMILIES = ("mixtral", "deepseek_v3")
SUMS = 1e-3
"""Largest difference, relative to the largest value, that the order of sums in float32 explains in a model of three layers."""
CHOICES = 5e-2
"""The same of the squared distance from the source, where a code or a zero can fall on either side of a tie, which changes the
others of its row, or where many steps end in another minimum."""


@cache
def _source(family: str) -> Checkpoint:
    import tempfile

    folder = Path(tempfile.mkdtemp(prefix="moebench-gpu-"))
    return Checkpoint.open(tiny_checkpoint(family, folder / family))


@cache
def _stats(family: str, device: str) -> Stats:
    corpus = Corpus.of(tiny_tokens().tolist(), "random ids")
    return calibrate(_source(family), corpus, set(CATALOGUE), device=device, dtype="float32")


@cache
def _probe(family: str, device: str) -> ModelProbe:
    corpus = Corpus.of(tiny_tokens().tolist(), "random ids")
    return ModelProbe(_source(family), corpus, device=device, dtype="float32")


def _plan(name: str, family: str, device: str) -> Plan:
    method = method_class(name)()
    probe = _probe(family, device) if method.probing else None
    return method.plan(_source(family).inventory, _stats(family, device), probe)


def _logits(path: Path, device: str) -> torch.Tensor:
    with torch.no_grad():
        logits: torch.Tensor = load_model(path).to(device)(tiny_tokens(2, 16, seed=1).to(device)).logits
    return logits.cpu()


def _difference(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).abs().max() / expected.abs().max())


def _distance(path: Path, source: Checkpoint) -> float:
    """Return the squared distance of all experts' matrices from those of the source."""
    written, total = Checkpoint.open(path), 0.0
    for layer in source.inventory.moe_layers:
        for expert in range(source.inventory.layers[layer].experts):
            pairs = zip(stored_expert(written, layer, expert), stored_expert(source, layer, expert), strict=True)
            total += sum(float((one.double() - other.double()).square().sum()) for one, other in pairs)
    return total


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", sorted(CATALOGUE))
def test_a_statistic_measured_on_the_gpu_is_that_of_the_processor(name: str, family: str) -> None:
    found, expected = _stats(family, "cuda").values[name], _stats(family, "cpu").values[name]
    for one, other in zip(found, expected, strict=True):
        assert (one is None) == (other is None)
        if one is not None and other is not None:
            one, other = np.asarray(one, dtype=np.float64), np.asarray(other, dtype=np.float64)
            assert np.abs(one - other).max() <= SUMS * np.abs(other).max()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", names())
def test_a_method_compresses_on_the_gpu_as_on_the_processor(name: str, family: str, tmp_path: Path) -> None:
    source = _source(family)
    if reason := method_class(name)().refuse(source.inventory):
        pytest.skip(reason)
    plan, stats = _plan(name, family, "cpu"), _stats(family, "cpu")
    here = apply(source, plan, tmp_path / "cpu", moments=stats)
    there = apply(source, plan, tmp_path / "cuda", moments=stats, device="cuda")
    if all(layer.sparsity is None and layer.bits is None and layer.bases is None for layer in plan.layers):
        assert _difference(_logits(there, "cpu"), _logits(here, "cpu")) <= SUMS
    else:
        assert _distance(there, source) == pytest.approx(_distance(here, source), rel=CHOICES)
    assert _difference(_logits(here, "cuda"), _logits(here, "cpu")) <= SUMS
    decided = _plan(name, family, "cuda")
    assert cost(decided, source.inventory).bytes == pytest.approx(cost(plan, source.inventory).bytes, rel=0.02)


@pytest.mark.parametrize("kind", ["lora", "full", "router_kd", "expert_kd"])
def test_training_on_the_gpu_has_the_losses_of_the_processor(kind: str, tmp_path: Path) -> None:
    source = Checkpoint.open("pocket-mixtral")
    settings = {"kind": kind, "sequences": 16, "length": 32, "steps": 3, "batch": 4}
    stats = calibrate(source, None, method_class("magnitude")().measured)
    plan = method_class("magnitude").configured({"keep": 0.5}).plan(source.inventory, stats)
    path = apply(source, plan, tmp_path / "sparse")
    losses = {}
    for device in ("cpu", "cuda"):
        asked = RecoverySettings.model_validate({**settings, "device": device})
        teacher = source.path if asked.needs_teacher else None
        losses[device] = recover(path, asked, teacher=teacher, store_folder=tmp_path / device).losses
    assert losses["cuda"] == pytest.approx(losses["cpu"], rel=SUMS)
