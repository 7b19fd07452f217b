"""Train a model whose experts share an ancestor: ``python -m bench.pocket.upcycled [--out DIR] [--seed 0] [--noise 0.02]``.

A dense network learns first. It is copied into every expert, each copy with a little noise of its own, and the whole learns on
with a router. The architecture and the number of steps are those of pocket-mixtral, whose experts each begin at random.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, replace
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from bench.pocket import pocket_path
from bench.pocket.architectures import pocket_config
from bench.pocket.language.lexicon import BOUNDARY, PAD, vocabulary
from bench.pocket.train import RECIPES, learn
from bench.pocket.written import store

NAME = "pocket-upcycled"
LIKE = "pocket-mixtral"
"""The model whose recipe is shared out."""

DENSE_SHARE = 2 / 3
"""Share of the steps in which there is one network."""


def model_of(experts: int, seed: int) -> PreTrainedModel:
    """Return a model with random weights and ``experts`` experts a layer; one expert, always chosen, is a dense network."""
    ids = vocabulary()
    config = pocket_config(NAME, vocab_size=len(ids), bos=ids[BOUNDARY], eos=ids[BOUNDARY], pad=ids[PAD])
    config.num_local_experts = experts
    config.num_experts_per_tok = min(config.num_experts_per_tok, experts)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(
            config, attn_implementation="sdpa", experts_implementation="grouped_mm"
        )
        embedding = model.get_input_embeddings().weight
        with torch.no_grad():  # a direction in common, as the other pocket models have
            embedding += config.initializer_range * torch.randn(embedding.shape[-1])
    assert isinstance(model, PreTrainedModel)
    return model


def upcycled(dense: PreTrainedModel, experts: int, noise: float, seed: int) -> PreTrainedModel:
    """Return ``dense`` with its network copied into every expert; routers are random.

    The weights of the chosen experts add up to one, so without noise the outputs are those of the dense model.

    Args:
        dense: a model with one expert in each layer.
        experts: copies in each layer.
        noise: standard deviation of what is added to each copy, as a share of that of the matrix.
        seed: of routers and noise.
    """
    model = model_of(experts, seed)
    generator = torch.Generator().manual_seed(seed)
    source = dict(dense.named_parameters())
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if ".mlp.gate." in name:
                continue
            weight.copy_(source[name].expand_as(weight))
            if ".mlp.experts." in name:
                weight += noise * source[name].std() * torch.randn(weight.shape, generator=generator)
    return model


def main() -> None:
    """Read the command line and train."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=pocket_path(NAME), help="folder of the checkpoint")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--noise", type=float, default=0.02)
    parser.add_argument("--steps", type=int, default=RECIPES[LIKE].steps, help="of both parts together")
    parser.add_argument("--items", type=int, default=200, help="questions a domain, on which the result is scored")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    first = replace(RECIPES[LIKE], steps=round(DENSE_SHARE * arguments.steps))
    second = replace(first, steps=arguments.steps - first.steps, short_share=0.0, binding_share=0.0)
    model = model_of(1, arguments.seed)
    *_, before = learn(model, first, arguments.seed)
    model = upcycled(model, 8, arguments.noise, arguments.seed)
    # Other text than the first part has read.
    *_, after = learn(model, second, arguments.seed + 1)
    facts = {
        "model": NAME,
        "seed": arguments.seed,
        "noise": arguments.noise,
        "recipe": asdict(second),
        "dense_recipe": asdict(first),
        "tokens": arguments.steps * first.tokens,
        "threads": torch.get_num_threads(),
        "cpu_seconds": round(before.cpu_seconds + after.cpu_seconds, 1),
        "wall_seconds": round(before.wall_seconds + after.wall_seconds, 1),
        "final_loss": round(after.loss, 4),
    }
    print(json.dumps(store(model, arguments.out, facts, items=arguments.items), indent=1))


if __name__ == "__main__":
    main()
