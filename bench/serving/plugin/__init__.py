"""The vLLM plug-in: serves checkpoints whose layers differ, without changing vLLM.

vLLM calls ``register`` in every process (entry point ``vllm.general_plugins``). It adds one architecture for each family,
``Moebench<stock name>``, which is what our checkpoints state in ``config.json`` when no stock class can load them.
"""

from __future__ import annotations

from bench.families.compressed_config import PREFIX

STOCK = {
    "MixtralForCausalLM": ("vllm.model_executor.models.mixtral", "MixtralMoE"),
    "Qwen2MoeForCausalLM": ("vllm.model_executor.models.qwen2_moe", "Qwen2MoeSparseMoeBlock"),
    "Qwen3MoeForCausalLM": ("vllm.model_executor.models.qwen3_moe", "Qwen3MoeSparseMoeBlock"),
    "OlmoeForCausalLM": ("vllm.model_executor.models.olmoe", "OlmoeMoE"),
    "DeepseekV2ForCausalLM": ("vllm.model_executor.models.deepseek_v2", "DeepseekV2MoE"),
    "DeepseekV3ForCausalLM": ("vllm.model_executor.models.deepseek_v2", "DeepseekV2MoE"),
}
"""Module of each stock class, and the name of its MoE block there."""


def register() -> None:
    """Tell vLLM's registry where our classes are; nothing is imported until one of them is asked for."""
    from vllm import ModelRegistry

    from bench.serving.plugin.latent_configs import register_configs

    register_configs()
    for name in STOCK:
        if PREFIX + name not in ModelRegistry.models:
            ModelRegistry.register_model(PREFIX + name, f"bench.serving.plugin.model_classes:{PREFIX}{name}")
