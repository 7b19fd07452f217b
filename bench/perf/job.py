"""One measurement in a process of its own: ``python -m bench.perf.job KIND ...`` prints a JSON object on its last line.

Everything is imported before the clock starts, because imports take seconds in any stack and would hide ratios.
"""

from __future__ import annotations

import argparse
import json
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM
from transformers.models.qwen3_moe import modeling_qwen3_moe  # noqa: F401 - imported early, as said above

import bench.calibration.streaming  # noqa: F401 - imported early, as said above
from bench.applying.apply import apply
from bench.calibration.calibrate import calibrate
from bench.checkpoint.checkpoint import Checkpoint
from bench.perf.model import SIZES, build_m64
from bench.text.corpus import Corpus
from methods.criterion import REAP
from methods.framework.stats import GATE_POWERS, NORM_POWERS

LENGTH = 512
NEEDS = frozenset({"gate_norm_moment"})


def _peak_gib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def _ids(sequences: int) -> torch.Tensor:
    return torch.randint(SIZES["vocab_size"], (sequences, LENGTH), generator=torch.Generator().manual_seed(0))


def _timed(phases: dict[str, float], name: str, function: Callable[[], Any]) -> Any:
    start = time.process_time()
    result = function()
    phases[name] = time.process_time() - start
    return result


def _plain_model(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, experts_implementation="eager").eval()


@torch.inference_mode()
def plain(folder: Path, sequences: int) -> dict[str, float]:
    """Time the plain forward of transformers, one sequence at a time as its users calibrate."""
    phases: dict[str, float] = {}
    model = _timed(phases, "load", lambda: _plain_model(folder))
    ids = _ids(sequences)

    def forward() -> None:
        for row in range(sequences):
            model(ids[row : row + 1], use_cache=False)

    _timed(phases, "forward", forward)
    return phases


def streamed(folder: Path, sequences: int) -> dict[str, float]:
    """Time the whole job: open, digest, calibrate, plan, apply and save."""
    phases: dict[str, float] = {}
    checkpoint = _timed(phases, "open", lambda: Checkpoint.open(folder))
    _timed(phases, "digest", lambda: checkpoint.content)
    corpus = Corpus.of(_ids(sequences), "random ids")
    stats = _timed(phases, "calibrate", lambda: calibrate(checkpoint, corpus, NEEDS))
    plan = _timed(phases, "plan", lambda: REAP(keep=0.5).plan(checkpoint.inventory, stats))
    with tempfile.TemporaryDirectory(dir=folder.parent) as out:
        _timed(phases, "apply", lambda: apply(checkpoint, plan, Path(out) / "pruned"))
    phases["total"] = sum(phases.values())
    return phases


@torch.inference_mode()
def parity(folder: Path, sequences: int) -> dict[str, float]:
    """Compare REAP scores with hooks on the plain model: largest relative difference, and share of equal kept sets."""
    checkpoint = Checkpoint.open(folder)
    stats = calibrate(checkpoint, Corpus.of(_ids(sequences), "random ids"), NEEDS)
    model = _plain_model(folder)
    experts = SIZES["num_experts"]
    sums = np.zeros((len(model.model.layers), experts))
    counts = np.zeros_like(sums)

    def hook_for(index: int) -> Callable[..., None]:
        def hook(module: Any, arguments: tuple[torch.Tensor, ...]) -> None:
            hidden_TD, indices_TK, weights_TK = arguments
            for expert in range(experts):
                rows, places = torch.where(indices_TK == expert)
                gate, up = (hidden_TD[rows] @ module.gate_up_proj[expert].T).chunk(2, dim=-1)
                output = (torch.nn.functional.silu(gate) * up) @ module.down_proj[expert].T
                sums[index, expert] += float((output.norm(dim=-1).double() * weights_TK[rows, places].double()).sum())
                counts[index, expert] += len(rows)

        return hook

    for index, layer in enumerate(model.model.layers):
        layer.mlp.experts.register_forward_pre_hook(hook_for(index))
    for row in _ids(sequences):
        model(row[None], use_cache=False)
    theirs = sums / np.maximum(counts, 1)
    rule = REAP(keep=0.5)
    ours = np.stack([rule.scores(stats, index) for index in range(len(theirs))])
    half = experts // 2
    same = [set(np.argsort(-a)[:half]) == set(np.argsort(-b)[:half]) for a, b in zip(ours, theirs, strict=True)]
    grid = stats.layer("gate_norm_moment", 0)
    assert grid.shape == (experts, len(GATE_POWERS), len(NORM_POWERS))
    routed = counts > 0
    assert np.array_equal(ours > 0, routed)
    return {"relative": float(np.abs(ours[routed] / theirs[routed] - 1).max()), "same_sets": float(np.mean(same))}


def main() -> None:
    """Run one measurement."""
    parser = argparse.ArgumentParser()
    parser.add_argument("kind", choices=["build", "plain", "streamed", "parity"])
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--sequences", type=int, default=8)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    folder = build_m64(arguments.cache, arguments.layers)
    values: dict[str, float] = {}
    if arguments.kind != "build":
        kinds = {"plain": plain, "streamed": streamed, "parity": parity}
        imports = _peak_gib()
        values = kinds[arguments.kind](folder, arguments.sequences)
        values |= {"imports_gib": imports, "peak_gib": _peak_gib() - imports}
    print(json.dumps(values))


if __name__ == "__main__":
    main()
