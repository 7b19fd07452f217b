"""One measurement of subset search in a process of its own: ``python -m bench.perf.subset_job KIND ...``.

It prints a JSON object on its last line. Everything is imported before the clock starts.
"""

from __future__ import annotations

import argparse
import itertools
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn.functional import linear, silu
from transformers import AutoModelForCausalLM, MixtralConfig
from transformers.models.mixtral import modeling_mixtral  # noqa: F401 - imported early, as said above

import bench.calibration.streaming  # noqa: F401 - imported early, as said above
from bench.applying.apply import apply
from bench.calibration.calibrate import calibrate
from bench.checkpoint.checkpoint import Checkpoint
from bench.store.staging import staged_folder
from bench.text.corpus import Corpus
from methods.framework.inventory import Router
from methods.kernels.genetic import Breeding, breed
from methods.kernels.subset_loss import SubsetLoss
from methods.kernels.subset_search import eliminate, exchange
from methods.moe_i2 import by_importance
from methods.naee import NAEE

VERSION = 1
SIZES = {
    "hidden_size": 512,
    "intermediate_size": 1024,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "num_local_experts": 8,
    "num_experts_per_tok": 2,
    "vocab_size": 4096,
    "max_position_embeddings": 2048,
    "tie_word_embeddings": False,
}
SEQUENCES, LENGTH = 8, 512
EXPERTS, TOKENS = 64, 4096
CLUSTERS, OWN = 32, 0.2
"""Experts of the synthetic layer share their function with one other on average, up to this share of their own."""


def build_mx8(cache: Path) -> Path:
    """Return the folder of a random Mixtral of four layers (58 M parameters), built when it is not there."""
    folder = cache / f"mx8-v{VERSION}"
    if (folder / "config.json").exists():
        return folder
    cache.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(MixtralConfig(**SIZES), dtype=torch.float32)
    with torch.no_grad():
        for layer in model.model.layers:
            layer.mlp.experts.down_proj.mul_(2.0 + 6.0 * torch.rand(8, 1, 1, generator=generator))
            layer.mlp.gate.weight.mul_(4.0)
    with staged_folder(folder) as partial:
        model.save_pretrained(partial)
    return folder


def _ids() -> torch.Tensor:
    return torch.randint(SIZES["vocab_size"], (SEQUENCES, LENGTH), generator=torch.Generator().manual_seed(0))


def _timed(values: dict[str, Any], name: str, function: Callable[[], Any]) -> Any:
    start = time.process_time()
    result = function()
    values[name] = time.process_time() - start
    return result


def naee(cache: Path) -> dict[str, Any]:
    """Time the whole job: open, digest, calibrate, plan, apply; and return what stays."""
    folder, values, method = build_mx8(cache), dict[str, Any](), NAEE(keep=0.5)
    checkpoint = _timed(values, "open", lambda: Checkpoint.open(folder))
    _timed(values, "digest", lambda: checkpoint.content)
    corpus = Corpus.of(_ids(), "random ids")
    stats = _timed(
        values, "calibrate", lambda: calibrate(checkpoint, corpus, method.needs, sampled_tokens=SEQUENCES * LENGTH)
    )
    plan = _timed(values, "plan", lambda: method.plan(checkpoint.inventory, stats))
    with tempfile.TemporaryDirectory(dir=cache) as out:
        _timed(values, "apply", lambda: apply(checkpoint, plan, Path(out) / "pruned"))
    values["total"] = sum(values.values())
    return values | {"kept": [layer.experts for layer in plan.layers]}


@torch.inference_mode()
def enumeration(cache: Path) -> dict[str, Any]:
    """Time the search that runs the experts again for each of the 70 sets of each layer, and return what stays."""
    model = AutoModelForCausalLM.from_pretrained(
        build_mx8(cache), dtype=torch.float32, experts_implementation="eager"
    ).eval()
    inputs: list[torch.Tensor] = []
    for layer in model.model.layers:
        layer.mlp.register_forward_pre_hook(lambda _, arguments: inputs.append(arguments[0].flatten(0, 1)))
    values: dict[str, Any] = {}
    _timed(values, "forward", lambda: model(_ids(), use_cache=False, logits_to_keep=1))
    kept = []

    def search() -> None:
        for layer, states in zip(model.model.layers, inputs, strict=True):
            complete = _block(layer.mlp, states, tuple(range(8)))
            losses = {
                stay: sum(
                    float(part.norm())
                    for part in (complete - _block(layer.mlp, states, stay)).double().chunk(NAEE().batches)
                )
                for stay in itertools.combinations(range(8), 4)
            }
            kept.append(min(losses, key=lambda stay: losses[stay]))

    _timed(values, "search", search)
    return values | {"kept": kept}


def _block(block: Any, states_TD: torch.Tensor, stay: tuple[int, ...]) -> torch.Tensor:
    """Return the output of a Mixtral block when only the experts ``stay`` can be chosen."""
    logits_TE = linear(states_TD, block.gate.weight)
    masked_TE = torch.full_like(logits_TE, -torch.inf)
    masked_TE[:, list(stay)] = logits_TE[:, list(stay)]
    weights_TK, indices_TK = masked_TE.softmax(dim=-1).topk(2, dim=-1)
    weights_TK = weights_TK / weights_TK.sum(dim=-1, keepdim=True)
    output_TD = torch.zeros_like(states_TD)
    for expert in stay:
        rows, places = torch.where(indices_TK == expert)
        gate, up = linear(states_TD[rows], block.experts.gate_up_proj[expert]).chunk(2, dim=-1)
        found = linear(silu(gate) * up, block.experts.down_proj[expert]) * weights_TK[rows, places, None]
        output_TD.index_add_(0, rows, found)
    return output_TD


def redundant_layer(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return logits (S, E) and Gram matrices (S, E, E) in float32 of a layer whose experts come in clusters.

    An expert is a random linear map, mostly that of its cluster; router rows are alike inside a cluster too.
    """
    rng, width = np.random.default_rng(seed), 64
    cluster = rng.integers(0, CLUSTERS, EXPERTS)
    shared, own = (rng.normal(size=(n, width, width)) / width**0.5 for n in (CLUSTERS, EXPERTS))
    maps = shared[cluster] * (1 - OWN**2) ** 0.5 + own * OWN
    rows = (rng.normal(size=(CLUSTERS, width))[cluster] + rng.normal(size=(EXPERTS, width))) * (1.4 / width**0.5)
    states = rng.normal(size=(TOKENS, width))
    outputs = np.einsum("edh,sd->seh", maps, states, optimize=True).astype(np.float32)
    return states @ rows.T, outputs @ outputs.swapaxes(1, 2)


def many(removed: int, top_k: int, renormalise: bool, seed: int) -> dict[str, Any]:
    """Time the searches on one layer of 64 experts of which ``removed`` go, and return their losses.

    Args:
        removed: experts that go.
        top_k: experts of a token.
        renormalise: whether the router's weights add up to 1.
        seed: of the layer and of the genetic search.
    """
    values: dict[str, Any] = {}
    logits, gram = redundant_layer(seed)
    router = Router(renormalise=renormalise)
    loss = _timed(values, "prepare", lambda: SubsetLoss(router, top_k, logits, gram, most_removed=removed))
    greedy = _timed(values, "greedy", lambda: eliminate(loss.neighbours(), removed))
    swapped = _timed(values, "exchange", lambda: exchange(loss.neighbours(), greedy, sweeps=10))
    order = by_importance(loss.losses(np.eye(EXPERTS, dtype=bool)), 1)

    def genetic(*seeds: Any) -> float:
        rng = np.random.default_rng(seed)
        return breed(loss.losses, order, removed, 1, Breeding(), rng, seeds=seeds).best[0].loss

    losses = {"greedy": greedy.loss, "exchange": swapped.loss}
    losses["genetic"] = _timed(values, "genetic", genetic)
    losses["seeded"] = _timed(values, "seeded", lambda: genetic(greedy))
    return values | {"losses": losses}


def main() -> None:
    """Run one measurement."""
    parser = argparse.ArgumentParser()
    parser.add_argument("kind", choices=["naee", "enumeration", "many"])
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument("--removed", type=int, default=16)
    parser.add_argument("--top-k", type=int, default=8)
    parser.add_argument("--renormalise", action="store_true")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.kind == "many":
        values = many(arguments.removed, arguments.top_k, arguments.renormalise, arguments.seed)
    else:
        build_mx8(arguments.cache)
        values = (naee if arguments.kind == "naee" else enumeration)(arguments.cache)
    print(json.dumps(values))


if __name__ == "__main__":
    main()
