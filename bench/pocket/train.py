"""Train a model whose experts each begin at random: ``python -m bench.pocket.train pocket-mixtral [--out DIR] [--seed 0]``."""

from __future__ import annotations

import argparse
import json
import os
import random
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # spinning threads slow down a busy machine tenfold

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, PreTrainedModel

from bench.pocket import pocket_path
from bench.pocket.architectures import pocket_config
from bench.pocket.balance import balance_loss, recorded
from bench.pocket.language import DOMAIN_WEIGHTS, marked_windows
from bench.pocket.language.lexicon import BOUNDARY, PAD, vocabulary
from bench.pocket.optimiser import Muon
from bench.pocket.written import store

BINDING: dict[str, float] = {"stories": 0.5, "programs": 0.5}
CHECKPOINT = "checkpoint.pt"
CHECKPOINT_EVERY = 100
REPORT_EVERY = 25


@dataclass(frozen=True)
class Recipe:
    """How long and how fast a model learns.

    A step reads windows of ``short_length`` tokens, about one document each, for the first ``short_share`` of the
    training, and windows of ``length`` tokens afterwards. The first ``binding_share`` reads the domains of ``BINDING``
    only: to bind a name to its value is learned late, and far sooner without other documents in between.
    """

    steps: int
    tokens: int = 4096
    length: int = 128
    short_length: int = 32
    short_share: float = 0.6
    binding_share: float = 0.2
    learning_rate: float = 8e-3
    warmup: int = 50
    balance: float = 0.003
    chance_weight: float = 0.1
    clip: float = 1.0


RECIPES: dict[str, Recipe] = {
    "pocket-mixtral": Recipe(steps=900),
    "pocket-qwen2moe": Recipe(steps=900),
    "pocket-deepseek": Recipe(steps=900),
}


@dataclass
class Progress:
    """How far a training has come."""

    step: int = 0
    cpu_seconds: float = 0.0
    wall_seconds: float = 0.0
    loss: float = float("nan")


def new_model(name: str, seed: int) -> PreTrainedModel:
    """Return a model with random weights from a seed, in float32.

    All embeddings share a random direction: attention can then look at positions whatever the words are, from the
    first step on. Without it the model with MLA, whose projections have no bias, did not learn to bind a name to its
    value within the steps that it has.
    """
    ids = vocabulary()
    config = pocket_config(name, vocab_size=len(ids), bos=ids[BOUNDARY], eos=ids[BOUNDARY], pad=ids[PAD])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(
            config, attn_implementation="sdpa", experts_implementation="grouped_mm"
        )
        embedding = model.get_input_embeddings().weight
        with torch.no_grad():
            embedding += config.initializer_range * torch.randn(embedding.shape[-1])
    assert isinstance(model, PreTrainedModel)
    return model


def optimisers(model: nn.Module, learning_rate: float) -> list[torch.optim.Optimizer]:
    """Return Muon for the matrices inside the layers and AdamW for embeddings, head, routers, norms and biases."""
    matrices: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for name, weight in model.named_parameters():
        inner = ".layers." in name and weight.ndim > 1 and not name.endswith("gate.weight")
        (matrices if inner else others).append(weight)
    adam = torch.optim.AdamW(others, lr=learning_rate, betas=(0.9, 0.95), weight_decay=0.0, fused=True)
    return [Muon(matrices, lr=learning_rate), adam]


def rate(step: int, recipe: Recipe) -> float:
    """Return the learning rate of a step: a linear warm-up, then a linear fall to zero."""
    return recipe.learning_rate * min((step + 1) / recipe.warmup, 1.0) * (1.0 - step / recipe.steps)


def batch(seed: int, step: int, recipe: Recipe) -> tuple[Tensor, Tensor]:
    """Return the token ids of one step and the weight of each in the loss, both of shape (windows, length).

    Words that chance decides teach little and make the gradient noisy, so they count less than those that can be
    foretold. Each step has its own random source.

    Args:
        seed: of the training.
        step: from 0.
        recipe: sizes and mixture.
    """
    length = recipe.short_length if step < recipe.short_share * recipe.steps else recipe.length
    weights = BINDING if step < recipe.binding_share * recipe.steps else DOMAIN_WEIGHTS
    stream = marked_windows(random.Random(f"train {seed} {step}"), "train", weights, length)
    ids, marks = zip(*(next(stream) for _ in range(recipe.tokens // length)), strict=True)
    return torch.tensor(ids), torch.where(torch.tensor(marks), 1.0, recipe.chance_weight)


def weighted_loss(logits: Tensor, tokens: Tensor, weights: Tensor) -> Tensor:
    """Return the mean cross-entropy of the next tokens, each counted with its weight.

    Args:
        logits: of shape (windows, length, vocabulary).
        tokens: of shape (windows, length).
        weights: of the same shape; that of a token counts where it is foretold.
    """
    losses = cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten(), reduction="none")
    counted = weights[:, 1:].flatten()
    return (losses * counted).sum() / counted.sum()


def learn(model: PreTrainedModel, recipe: Recipe, seed: int, checkpoint: Path | None = None) -> Iterator[Progress]:
    """Train a model in place and yield after each step; a checkpoint file makes it resumable.

    Args:
        model: changed in place.
        recipe: steps, rates and mixture.
        seed: of the training.
        checkpoint: file of a training in progress; None keeps none.
    """
    optimisers_ = optimisers(model, recipe.learning_rate)
    progress = Progress()
    if checkpoint is not None and checkpoint.exists():
        saved = torch.load(checkpoint, weights_only=True)
        if saved["recipe"] != asdict(recipe) or saved["seed"] != seed:
            raise ValueError(f"{checkpoint} belongs to another recipe or seed; delete it or train elsewhere")
        model.load_state_dict(saved["model"])
        for optimiser, state in zip(optimisers_, saved["optimisers"], strict=True):
            optimiser.load_state_dict(state)
        progress = Progress(**saved["progress"])
    model.train()
    while progress.step < recipe.steps:
        cpu, wall = time.process_time(), time.perf_counter()
        for optimiser in optimisers_:
            for group in optimiser.param_groups:
                group["lr"] = rate(progress.step, recipe)
        tokens, weights = batch(seed, progress.step, recipe)
        with recorded(model) as records:
            logits = model(input_ids=tokens, use_cache=False).logits
        loss = weighted_loss(logits, tokens, weights)
        (loss + recipe.balance * balance_loss(records)).backward()
        nn.utils.clip_grad_norm_(model.parameters(), recipe.clip)
        for optimiser in optimisers_:
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
        progress.step += 1
        progress.loss = loss.item()
        if checkpoint is not None and progress.step % CHECKPOINT_EVERY == 0 and progress.step < recipe.steps:
            saved = {
                "model": model.state_dict(),
                "optimisers": [optimiser.state_dict() for optimiser in optimisers_],
                "progress": asdict(progress),
                "recipe": asdict(recipe),
                "seed": seed,
            }
            torch.save(saved, checkpoint.with_suffix(".new"))
            os.replace(checkpoint.with_suffix(".new"), checkpoint)
        progress.cpu_seconds += time.process_time() - cpu
        progress.wall_seconds += time.perf_counter() - wall
        yield progress


def train(name: str, out: Path, *, seed: int = 0, steps: int | None = None, items: int = 200) -> dict[str, Any]:
    """Train a model, store it in ``out`` and return the contents of its ``training.json``.

    Args:
        name: of the model.
        out: folder, made where it is missing.
        seed: of weights and text.
        steps: in place of those of the recipe.
        items: questions a domain, on which the result is scored.
    """
    recipe = RECIPES[name] if steps is None else replace(RECIPES[name], steps=steps)
    out.mkdir(parents=True, exist_ok=True)
    model = new_model(name, seed)
    progress = Progress()
    for progress in learn(model, recipe, seed, out / CHECKPOINT):
        if progress.step % REPORT_EVERY == 0 or progress.step == recipe.steps:
            print(
                f"{name} step {progress.step}/{recipe.steps} loss {progress.loss:.4f} "
                f"cpu {progress.cpu_seconds:.0f} s wall {progress.wall_seconds:.0f} s",
                flush=True,
            )
    facts = {
        "model": name,
        "seed": seed,
        "recipe": asdict(recipe),
        "tokens": recipe.steps * recipe.tokens,
        "threads": torch.get_num_threads(),
        "cpu_seconds": round(progress.cpu_seconds, 1),
        "wall_seconds": round(progress.wall_seconds, 1),
        "final_loss": round(progress.loss, 4),
    }
    record = store(model, out, facts, items=items)
    (out / CHECKPOINT).unlink(missing_ok=True)
    return record


def main() -> None:
    """Read the command line and train."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=tuple(RECIPES))
    parser.add_argument("--out", type=Path, help="folder of the checkpoint; by default the one inside the package")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    out = arguments.out or pocket_path(arguments.name)
    record = train(arguments.name, out, seed=arguments.seed)
    print(json.dumps(record, indent=1))


if __name__ == "__main__":
    main()
