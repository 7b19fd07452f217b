"""Write a trained model in bfloat16 and the measurements of what was written."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from bench.pocket.balance import entropy, load, recorded, specialisation
from bench.pocket.damage import random_removal
from bench.pocket.language import DOMAIN_WEIGHTS, DOMAINS, windows
from bench.pocket.score import domain_accuracy
from bench.pocket.tokenizer import save_tokenizer

LOAD_WINDOWS = 64


def complete_config(folder: Path) -> None:
    """Name the number of experts and the base of RoPE as older and as newer transformers call them."""
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    for known, other in (("num_local_experts", "num_experts"), ("num_experts", "num_local_experts")):
        if known in config:
            config.setdefault(other, config[known])
    config.setdefault("rope_theta", config["rope_parameters"]["rope_theta"])
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def load_stored(folder: Path) -> PreTrainedModel:
    """Return a stored model, computing in float32."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    assert isinstance(model, PreTrainedModel)
    return model


@torch.no_grad()
def loads(model: PreTrainedModel, weights: Mapping[str, float], count: int = LOAD_WINDOWS) -> Tensor:
    """Return the share of the choices that each expert gets on held-out text of some domains, of shape (L, E).

    Args:
        model: a pocket model.
        weights: relative frequency of each domain by name.
        count: windows of 128 tokens.
    """
    stream = windows(random.Random("load"), "test", weights, 128)
    with recorded(model) as records:
        model(input_ids=torch.tensor([next(stream) for _ in range(count)]), use_cache=False)
    return torch.stack([load(routing) for routing in records])


def load_entropy(model: PreTrainedModel) -> list[float]:
    """Return the entropy of each MoE layer's load on held-out text of the whole mixture, divided by log E."""
    return [entropy(load_E) for load_E in loads(model, DOMAIN_WEIGHTS)]


def domain_specialisation(model: PreTrainedModel) -> list[float]:
    """Return, for each MoE layer, how much the choice of an expert tells about the domain (0 nothing, 1 all)."""
    loads_NLE = torch.stack([loads(model, {name: 1.0}, LOAD_WINDOWS // 4) for name in DOMAINS])
    return [specialisation(loads_NE) for loads_NE in loads_NLE.unbind(1)]


def measure(model: PreTrainedModel, items: int) -> dict[str, Any]:
    """Return accuracy by domain, load entropy by layer, and accuracy after random removal of experts."""
    accuracy = domain_accuracy(model, items)
    entropies = load_entropy(model)
    return {
        "parameters": sum(weight.numel() for weight in model.parameters()),
        "items_per_domain": items,
        "accuracy": {name: round(value, 4) for name, value in accuracy.items()},
        "mean_accuracy": round(sum(accuracy.values()) / len(accuracy), 4),
        "load_entropy": [round(value, 4) for value in entropies],
        "domain_specialisation": [round(value, 4) for value in domain_specialisation(model)],
        "random_removal": random_removal(model, items=items),
    }


def store(model: PreTrainedModel, folder: Path, facts: Mapping[str, Any], *, items: int) -> dict[str, Any]:
    """Write weights, configuration, tokenizer and ``training.json`` and return the last.

    Args:
        model: the trained model; it becomes bfloat16.
        folder: where the checkpoint goes.
        facts: what is known of the training.
        items: items a domain for the measurements, which are made on what was stored.
    """
    model.to(torch.bfloat16).save_pretrained(folder)
    (folder / "model.safetensors").chmod(0o644)
    complete_config(folder)
    save_tokenizer(folder)
    return write_record(folder, facts, items=items)


def write_record(folder: Path, facts: Mapping[str, Any], *, items: int) -> dict[str, Any]:
    """Measure a stored model, write ``training.json`` beside it and return its contents.

    Args:
        folder: of the stored model.
        facts: how it was trained.
        items: questions a domain.
    """
    record = {**facts, **measure(load_stored(folder), items)}
    (folder / "training.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return record
