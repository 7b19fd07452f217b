"""Laws about checkpoints: the plan of a tiny model is written, counted and loaded again."""

from __future__ import annotations

import shutil
import tempfile
import weakref
from functools import cache, lru_cache
from pathlib import Path

import torch
from transformers import PreTrainedModel

from bench.applying.apply import apply
from bench.applying.in_memory import realised
from bench.calibration.calibrate import calibrate
from bench.checkpoint.checkpoint import Checkpoint
from bench.laws.cases import Case
from bench.laws.decisions import tried
from bench.models.load import load_model
from bench.models.tiny import tiny_checkpoint, tiny_tokens
from bench.text.corpus import Corpus
from methods.framework.cost import cost
from methods.framework.method import Method
from methods.framework.plan import Plan
from methods.framework.probe import Probe
from methods.framework.stats import CATALOGUE, Stats

TOLERANCE = 1e-5
"""Largest difference of float32 logits that counts as equal: sums in another order, nothing else."""
WRITTEN = 4
"""Written checkpoints that wait for another law on them, that of the neutral plan among them."""


class _Folder:
    """A folder for checkpoints that goes when nobody holds it."""

    def __init__(self) -> None:
        self.path = Path(tempfile.mkdtemp(prefix="moebench-law-"))
        weakref.finalize(self, shutil.rmtree, self.path, ignore_errors=True)


@cache
def _source(family: str) -> tuple[_Folder, Checkpoint, Stats]:
    """Return a tiny checkpoint of ``family`` on disk with all its statistics; the folder goes with the process."""
    folder = _Folder()
    checkpoint = Checkpoint.open(tiny_checkpoint(family, folder.path / family))
    stats = calibrate(checkpoint, _corpus(), set(CATALOGUE))
    return folder, checkpoint, stats


def _corpus() -> Corpus:
    return Corpus.of(tiny_tokens().tolist(), "random ids")


@cache
def _probe(family: str) -> Probe:
    """Return a probe that runs the tiny model of ``family``; it keeps its answers, as all laws ask the same."""
    from bench.probing.model_probe import ModelProbe

    return ModelProbe(_source(family)[1], _corpus())


@cache
def _original(family: str) -> tuple[PreTrainedModel, torch.Tensor]:
    """Return the tiny model of ``family`` and its logits; plans are realised on it in turn, and it stays what it was."""
    model = load_model(_source(family)[1].path)
    return model, _logits(model)


@lru_cache(maxsize=WRITTEN)
def _plan(method: Method, family: str) -> Plan:
    """Return what ``method`` decides on the tiny model of ``family``."""
    _, checkpoint, stats = _source(family)
    return method.plan(checkpoint.inventory, stats, _probe(family) if method.probing else None)


@lru_cache(maxsize=WRITTEN)
def _written(plan: Plan, family: str) -> tuple[_Folder, Path]:
    """Return the checkpoint that ``plan`` makes of the tiny model of ``family``, and the folder that holds it."""
    _, checkpoint, stats = _source(family)
    folder = _Folder()
    return folder, apply(checkpoint, plan, folder.path / "compressed", moments=stats)


def _logits(model: PreTrainedModel) -> torch.Tensor:
    """Return logits for fixed random tokens, shape (B, T, V)."""
    with torch.no_grad():
        logits: torch.Tensor = model(tiny_tokens(2, 16, seed=1)).logits
    return logits


def neutral_checkpoint(cls: type[Method], case: Case) -> None:
    """Applying the neutral plan gives bit-equal tensors and logits."""
    _unchanged(_plan(cls.neutral(), case.family), case.family)


@lru_cache(maxsize=WRITTEN)
def _unchanged(plan: Plan, family: str) -> None:
    """Check that ``plan`` changes nothing; almost all neutral plans are one plan, which is tried once."""
    checkpoint, (_, path) = _source(family)[1], _written(plan, family)
    written = Checkpoint.open(path)
    assert written.inventory == checkpoint.inventory, "other tensors are left"
    for entry in checkpoint.inventory.tensors():
        assert torch.equal(checkpoint.read(entry), written.read(entry)), f"{entry.name} changed"
    assert torch.equal(_original(family)[1], _logits(load_model(path))), "the logits changed"


def cost_is_the_file(cls: type[Method], case: Case) -> None:
    """The cost of the plan is what the written files hold, to the byte."""
    plan = _plan(tried(cls), case.family)
    expected = cost(plan, _source(case.family)[1].inventory)
    entries = list(Checkpoint.open(_written(plan, case.family)[1]).inventory.tensors())
    found = (sum(entry.parameters for entry in entries), sum(entry.nbytes for entry in entries))
    assert found == (expected.parameters, expected.bytes), f"counted {expected}, found {found}"


def reloads_alike(cls: type[Method], case: Case) -> None:
    """The written checkpoint loads in transformers with the logits of the plan realised on the original."""
    _, checkpoint, stats = _source(case.family)
    plan = _plan(tried(cls), case.family)
    model, before = _original(case.family)
    with realised(model, checkpoint.inventory, plan, moments=stats):
        masked = _logits(model)
    difference = float((masked - _logits(load_model(_written(plan, case.family)[1]))).abs().max())
    assert difference <= TOLERANCE, f"logits differ by {difference:.2e}"
    assert torch.equal(_logits(model), before), "the original is not what it was before the plan was realised on it"
