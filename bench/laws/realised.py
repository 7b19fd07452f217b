"""Laws about checkpoints: the plan of a tiny model is written, counted and loaded again."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import torch

from bench.applying.apply import apply
from bench.applying.in_memory import realised
from bench.calibration.calibrate import calibrate
from bench.checkpoint.checkpoint import Checkpoint
from bench.laws.cases import Case
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


@cache
def _source(family: str) -> tuple[tempfile.TemporaryDirectory[str], Checkpoint, Stats]:
    """Return a tiny checkpoint of ``family`` on disk with all its statistics; the folder goes with the process."""
    folder = tempfile.TemporaryDirectory(prefix="moebench-law-")
    checkpoint = Checkpoint.open(tiny_checkpoint(family, Path(folder.name) / family))
    stats = calibrate(checkpoint, _corpus(), set(CATALOGUE))
    return folder, checkpoint, stats


def _corpus() -> Corpus:
    return Corpus.of(tiny_tokens().tolist(), "random ids")


@cache
def _probe(family: str) -> Probe:
    """Return a probe that runs the tiny model of ``family``; it keeps its answers, as all laws ask the same."""
    from bench.probing.model_probe import ModelProbe

    return ModelProbe(_source(family)[1], _corpus())


@contextmanager
def _written(method: Method, family: str) -> Iterator[tuple[Checkpoint, Plan, Path]]:
    """Yield source, plan and the folder of the checkpoint that ``method`` makes of the tiny model of ``family``."""
    _, checkpoint, stats = _source(family)
    plan = method.plan(checkpoint.inventory, stats, _probe(family) if method.probing else None)
    with tempfile.TemporaryDirectory(prefix="moebench-law-") as folder:
        yield checkpoint, plan, apply(checkpoint, plan, Path(folder) / "compressed", moments=stats)


def _logits(path: Path) -> torch.Tensor:
    """Return the logits of the checkpoint in ``path`` for fixed random tokens, shape (B, T, V)."""
    with torch.no_grad():
        logits: torch.Tensor = load_model(path)(tiny_tokens(2, 16, seed=1)).logits
    return logits


def neutral_checkpoint(cls: type[Method], case: Case) -> None:
    """Applying the neutral plan gives bit-equal tensors and logits."""
    with _written(cls.neutral(), case.family) as (checkpoint, _, path):
        written = Checkpoint.open(path)
        for entry in checkpoint.inventory.tensors():
            assert torch.equal(checkpoint.read(entry), written.read(entry)), f"{entry.name} changed"
        assert torch.equal(_logits(checkpoint.path), _logits(path)), "the logits changed"


def cost_is_the_file(cls: type[Method], case: Case) -> None:
    """The cost of the plan is what the written files hold, to the byte."""
    with _written(cls(), case.family) as (checkpoint, plan, path):
        expected = cost(plan, checkpoint.inventory)
        entries = list(Checkpoint.open(path).inventory.tensors())
        found = (sum(entry.parameters for entry in entries), sum(entry.nbytes for entry in entries))
        assert found == (expected.parameters, expected.bytes), f"counted {expected}, found {found}"


def reloads_alike(cls: type[Method], case: Case) -> None:
    """The written checkpoint loads in transformers with the logits of the plan realised on the original."""
    with _written(cls(), case.family) as (checkpoint, plan, path), torch.no_grad():
        model = load_model(checkpoint.path)
        with realised(model, checkpoint.inventory, plan, moments=_source(case.family)[2]):
            masked = model(tiny_tokens(2, 16, seed=1)).logits
        difference = float((masked - _logits(path)).abs().max())
        assert difference <= TOLERANCE, f"logits differ by {difference:.2e}"
