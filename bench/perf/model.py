"""m64 and w64: random Qwen3-MoE models that calibration and compressing are measured on."""

from __future__ import annotations

from pathlib import Path

from bench.store.staging import staged_folder

VERSION = 1
SIZES = {
    "hidden_size": 512,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "num_experts": 64,
    "num_experts_per_tok": 8,
    "moe_intermediate_size": 256,
    "intermediate_size": 1024,
    "vocab_size": 4096,
    "max_position_embeddings": 2048,
    "norm_topk_prob": True,
    "tie_word_embeddings": False,
}
WIDE = {**SIZES, "hidden_size": 1024, "moe_intermediate_size": 512, "intermediate_size": 2048}
"""Matrices that are large enough for the arithmetic on them to weigh more than what surrounds it."""


def build_m64(cache: Path, layers: int = 8, seed: int = 0) -> Path:
    """Return the folder of m64 with ``layers`` decoder layers (211 M parameters with 8), built when it is not there.

    Random float32 weights from ``seed``; the experts' output scales are spread over [0.5, 2), so that ranks are separated.

    Args:
        cache: folder that models are kept in.
        layers: decoder layers.
        seed: of the weights.
    """
    return _built(cache / f"m64-v{VERSION}-{layers}-{seed}", SIZES, layers, seed)


def build_w64(cache: Path, layers: int = 2, seed: int = 0) -> Path:
    """Return the folder of w64, m64 with matrices twice as wide, built likewise.

    Args:
        cache: folder that models are kept in.
        layers: decoder layers.
        seed: of the weights.
    """
    return _built(cache / f"w64-v{VERSION}-{layers}-{seed}", WIDE, layers, seed)


def _built(folder: Path, sizes: dict[str, int], layers: int, seed: int) -> Path:
    if (folder / "config.json").exists():
        return folder
    import torch
    from transformers import AutoModelForCausalLM, Qwen3MoeConfig

    folder.parent.mkdir(parents=True, exist_ok=True)
    config = Qwen3MoeConfig(**sizes, num_hidden_layers=layers)
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for layer in model.model.layers:
            scales = 0.5 + 1.5 * torch.rand(config.num_experts, 1, 1, generator=generator)
            layer.mlp.experts.down_proj.mul_(scales)
    with staged_folder(folder) as partial:
        model.save_pretrained(partial)
    return folder
