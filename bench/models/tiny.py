"""Tiny random checkpoints of every family, written by transformers itself: what laws and tests are tried on.

What a family needs beside the sizes below stands in its file (``tiny``).
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel

from bench.families.family import Family, family_named
from bench.families.known_families import read_families
from methods.framework.errors import ConfigError
from methods.framework.inventory import EXPERT_BIAS_ROLES

RUNNABLE = tuple(name for name, family in read_families().items() if family.tiny is not None and not family.dense)
"""Families with experts of which transformers can build a model."""

FAMILIES = tuple(name for name in RUNNABLE if family_named(name).file.laws == "every")
"""Those of them on which every method is tried in the project's own tests; the others get a covering choice of methods."""

EXPERTS, TOP_K = 8, 2

_DRAWN = ("expert.gate", "expert.up", "router.weight", "router.bias", "shared.scalar_gate")
"""Roles of tensors that are drawn wider than transformers does."""

_SIZES: dict[str, Any] = {
    "hidden_size": 64,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "vocab_size": 160,
    "max_position_embeddings": 256,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": None,
}


def tiny_config(family: str, **overrides: Any) -> PreTrainedConfig:
    """Return the config of a 3-layer model of ``family`` with 8 experts, top-2, hidden size 64."""
    file = family_named(family).file
    keys = file.keys
    counts = {keys.layers: 3} | ({} if file.dense else {keys.experts[0]: EXPERTS, keys.top_k[0]: TOP_K})
    # Of several spellings of a key only one may be there, or they could contradict each other.
    first = {key: spellings[0] for spellings in (keys.experts, keys.top_k) for key in spellings}
    own = {first.get(key, key): value for key, value in overrides.items()}
    values = {**_SIZES, **counts, **(file.tiny or {}), **own}
    for key in (*keys.per_layer_lists, *keys.derived_lists):
        if isinstance(listed := values.get(key), list) and key not in own:  # those of the file are for three layers
            values[key] = [listed[layer % len(listed)] for layer in range(values[keys.layers])]
    return AutoConfig.for_model(file.loads_as or file.model_types[0], **values)


def tiny_model(family: str, seed: int = 0, **overrides: Any) -> PreTrainedModel:
    """Return a random float32 model whose experts have outputs of clearly different scale, so that ranks are separated."""
    torch.manual_seed(seed)
    config = tiny_config(family, **overrides)
    model: PreTrainedModel = _class_of(family)._from_config(config, dtype=torch.float32).eval()
    roles = _roles(family, config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            role = roles.get(name, "")
            if role == "expert.down":
                scale = torch.linspace(0.5, 2.0, parameter.shape[0])[torch.randperm(parameter.shape[0])]
                parameter.copy_(torch.randn_like(parameter) * 0.3 * scale[:, None, None])
            elif role in (*_DRAWN, *EXPERT_BIAS_ROLES):
                parameter.copy_(torch.randn_like(parameter) * 0.3)
        for name, buffer in (*model.named_parameters(), *model.named_buffers()):
            if roles.get(name) == "router.correction":
                buffer.copy_(torch.randn_like(buffer) * 0.05)
    return model


def _class_of(family: str) -> Any:
    """Return the class of the language model; transformers' automatic choice does not know all that are parts of others."""
    return getattr(transformers, family_named(family).file.architecture or "")


def _roles(family: str, config: PreTrainedConfig) -> dict[str, str]:
    """Return the role of every parameter and stored buffer of the model by name."""
    known = family_named(family)
    return {known.placement(entry).name: entry.role for entry in known.inventory(config.to_dict()).tensors()}


def tiny_checkpoint(
    family: str, folder: Path, seed: int = 0, dtype: torch.dtype = torch.float32, **overrides: Any
) -> Path:
    """Write a tiny random model, without tokenizer, to ``folder`` and return it.

    Args:
        family: name of an architecture.
        folder: gets config and weights.
        seed: of the weights.
        dtype: in which they are stored.
        overrides: values for keys of its config; see ``tiny_config``.
    """
    file = family_named(family).file
    model = tiny_model(family, seed, **overrides)
    if file.wrapper is not None:
        _within(family_named(family), model).to(dtype).save_pretrained(folder)
        if file.wrapper.saved is not None:
            _rename(folder / "model.safetensors", *file.wrapper.saved)
        return folder
    model.to(dtype).save_pretrained(folder)
    if file.loads_as is not None:
        document = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        (folder / "config.json").write_text(json.dumps({**document, "model_type": file.model_types[0]}, indent=2))
    return folder


def _rename(path: Path, saved: str, published: str) -> None:
    """Give the tensors of a file whose names begin with ``saved`` the beginning ``published``."""
    tensors = load_file(path)
    renamed = {re.sub(f"^{re.escape(saved)}", published, name): value for name, value in tensors.items()}
    save_file(renamed, path, metadata={"format": "pt"})


def _within(family: Family, model: PreTrainedModel) -> PreTrainedModel:
    """Return a larger model whose language model is ``model``."""
    wrapper = family.file.wrapper
    assert wrapper is not None
    text = {**model.config.to_dict(), "model_type": family.file.model_types[0]}
    inner = {key: value for key, value in text.items() if key not in family.file.loads_with}
    config = AutoConfig.for_model(wrapper.model_types[0], **{wrapper.config: inner, **wrapper.tiny})
    config.tie_word_embeddings = model.config.tie_word_embeddings
    outer: PreTrainedModel = getattr(transformers, wrapper.architecture)._from_config(config, dtype=torch.float32)
    own, longer = wrapper.modules or wrapper.prefix
    state = {re.sub(f"^{re.escape(own)}", longer, name): value for name, value in model.state_dict().items()}
    if unknown := outer.load_state_dict(state, strict=False).unexpected_keys:
        raise ConfigError(
            f"{wrapper.architecture} has no {', '.join(unknown[:4])}; correct wrapper.modules of {family.name}"
        )
    return outer.eval()


def tiny_tokens(sequences: int = 4, length: int = 24, vocab: int = 160, seed: int = 0) -> torch.Tensor:
    """Return random token ids of shape (sequences, length).

    Args:
        sequences: rows.
        length: tokens of each.
        vocab: ids are below it.
        seed: of the choice.
    """
    return torch.randint(vocab, (sequences, length), generator=torch.Generator().manual_seed(seed))
