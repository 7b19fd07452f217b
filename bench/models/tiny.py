"""Tiny random checkpoints of every family, written by transformers itself: what laws and tests are tried on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    DeepseekV2Config,
    DeepseekV3Config,
    MixtralConfig,
    OlmoeConfig,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2MoeConfig,
    Qwen3MoeConfig,
)

FAMILIES = ("mixtral", "qwen2_moe", "qwen3_moe", "olmoe", "deepseek_v2", "deepseek_v3")

_SIZES: dict[str, Any] = {
    "hidden_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "vocab_size": 160,
    "max_position_embeddings": 256,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": None,
}
_MLA: dict[str, Any] = {
    "kv_lora_rank": 512,
    "qk_rope_head_dim": 64,
    "qk_nope_head_dim": 32,
    "v_head_dim": 32,
    "moe_intermediate_size": 32,
    "intermediate_size": 96,
    "n_routed_experts": 8,
    "n_shared_experts": 2,
    "num_experts_per_tok": 2,
    "first_k_dense_replace": 1,
}


def tiny_config(family: str, **overrides: Any) -> PreTrainedConfig:
    """Return the config of a 3-layer model of ``family`` with 8 experts, top-2, hidden size 64."""
    if family == "mixtral":
        return MixtralConfig(**{**_SIZES, "intermediate_size": 32, "num_local_experts": 8, **overrides})
    if family == "qwen2_moe":
        own: dict[str, Any] = {
            "num_experts": 8,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 32,
            "shared_expert_intermediate_size": 48,
            "intermediate_size": 96,
        }
        return Qwen2MoeConfig(**{**_SIZES, **own, **overrides})
    if family == "qwen3_moe":
        own = {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "intermediate_size": 96}
        return Qwen3MoeConfig(**{**_SIZES, "head_dim": 32, "norm_topk_prob": True, **own, **overrides})
    if family == "olmoe":
        own = {"num_experts": 8, "num_experts_per_tok": 2, "intermediate_size": 32}
        return OlmoeConfig(**{**_SIZES, **own, **overrides})
    if family == "deepseek_v2":
        own = {
            "q_lora_rank": None,
            "n_group": 1,
            "topk_group": 1,
            "topk_method": "greedy",
            "routed_scaling_factor": 1.0,
        }
        return DeepseekV2Config(**{**_SIZES, **_MLA, **own, **overrides})
    if family == "deepseek_v3":
        own = {
            "q_lora_rank": 48,
            "n_group": 2,
            "topk_group": 1,
            # Published configs say these two; without them vLLM builds another router.
            "topk_method": "noaux_tc",
            "scoring_func": "sigmoid",
            "routed_scaling_factor": 2.5,
            "norm_topk_prob": True,
        }
        return DeepseekV3Config(**{**_SIZES, **_MLA, **own, **overrides})
    raise ValueError(family)


def tiny_model(family: str, seed: int = 0, **overrides: Any) -> PreTrainedModel:
    """Return a random float32 model whose experts have outputs of clearly different scale, so that ranks are separated."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(tiny_config(family, **overrides), dtype=torch.float32).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("experts.down_proj"):
                scale = torch.linspace(0.5, 2.0, parameter.shape[0])[torch.randperm(parameter.shape[0])]
                parameter.copy_(torch.randn_like(parameter) * 0.3 * scale[:, None, None])
            elif name.endswith("experts.gate_up_proj") or name.endswith("gate.weight"):
                parameter.copy_(torch.randn_like(parameter) * 0.3)
        for name, buffer in model.named_buffers():
            if name.endswith("e_score_correction_bias"):
                buffer.copy_(torch.randn_like(buffer) * 0.05)
    return model


def tiny_checkpoint(
    family: str, folder: Path, seed: int = 0, dtype: torch.dtype = torch.float32, **overrides: Any
) -> Path:
    """Write such a model, without tokenizer, to ``folder`` and return it."""
    tiny_model(family, seed, **overrides).to(dtype).save_pretrained(folder)
    return folder


def tiny_tokens(sequences: int = 4, length: int = 24, vocab: int = 160, seed: int = 0) -> torch.Tensor:
    """Return random token ids of shape (sequences, length)."""
    return torch.randint(vocab, (sequences, length), generator=torch.Generator().manual_seed(seed))
