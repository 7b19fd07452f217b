"""The three architectures of the pocket models, as standard transformers configurations."""

from __future__ import annotations

from typing import Any

from transformers import DeepseekV2Config, MixtralConfig, PretrainedConfig, Qwen2MoeConfig

from bench.pocket import POCKET_MODELS

SHARED: dict[str, Any] = {
    "hidden_size": 128,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-6,
    "initializer_range": 0.05,
    "tie_word_embeddings": False,
    "attention_dropout": 0.0,
    "rope_parameters": {"rope_type": "default", "rope_theta": 300.0},  # texts are short
    "use_cache": True,
}


def pocket_config(name: str, *, vocab_size: int, bos: int, eos: int, pad: int) -> PretrainedConfig:
    """Return the configuration of one pocket model.

    Args:
        name: one of ``bench.pocket.POCKET_MODELS``.
        vocab_size: rows of the embedding, V.
        bos: token id that opens a document.
        eos: token id that ends a document.
        pad: token id of padding.

    Raises:
        ValueError: if no pocket model has that name.
    """
    tokens: dict[str, Any] = {
        "vocab_size": vocab_size,
        "bos_token_id": bos,
        "eos_token_id": eos,
        "pad_token_id": pad,
    }
    if name in ("pocket-mixtral", "pocket-upcycled"):
        return MixtralConfig(
            **SHARED,
            **tokens,
            intermediate_size=128,
            num_hidden_layers=6,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=32,
            num_local_experts=8,
            num_experts_per_tok=2,
            router_aux_loss_coef=0.01,
            sliding_window=None,
        )
    if name == "pocket-qwen2moe":
        return Qwen2MoeConfig(
            **SHARED,
            **tokens,
            intermediate_size=128,
            moe_intermediate_size=32,
            shared_expert_intermediate_size=32,
            num_hidden_layers=6,
            num_attention_heads=4,
            num_key_value_heads=2,
            num_experts=32,
            num_experts_per_tok=4,
            norm_topk_prob=False,
            decoder_sparse_step=1,
            mlp_only_layers=[],
            router_aux_loss_coef=0.01,
            use_sliding_window=False,
        )
    if name == "pocket-deepseek":
        return DeepseekV2Config(
            **SHARED,
            **tokens,
            intermediate_size=192,
            moe_intermediate_size=32,
            num_hidden_layers=7,
            num_attention_heads=4,
            num_key_value_heads=4,
            n_routed_experts=32,
            num_experts_per_tok=4,
            n_shared_experts=2,
            first_k_dense_replace=1,
            routed_scaling_factor=1.0,
            n_group=1,
            topk_group=1,
            topk_method="greedy",
            norm_topk_prob=False,
            kv_lora_rank=512,
            q_lora_rank=None,
            qk_rope_head_dim=64,
            qk_nope_head_dim=32,
            v_head_dim=32,
            aux_loss_alpha=0.01,
        )
    raise ValueError(f"no pocket model is called {name!r}; the names are {', '.join(POCKET_MODELS)}")
