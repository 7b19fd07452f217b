"""Every published config that lies beside the project gets a true verdict: its family and size, or the field that refuses it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from bench.checkpoint.outline import outline
from methods.framework.cost import cost_of
from methods.framework.errors import CheckpointError
from tests.support.places import SHARED

CONFIGS = SHARED / "configs"
FOLDERS = sorted(path.name for path in CONFIGS.iterdir() if path.is_dir()) if CONFIGS.is_dir() else []

# Family, parameters and active parameters in billions, as counted from the shapes.
KNOWN = {
    "MiniMaxAI__MiniMax-M2.5": ("minimax_m2", 228.69, 11.03),
    "Qwen__Qwen1.5-MoE-A2.7B": ("qwen2_moe", 14.32, 2.69),
    "Qwen__Qwen3-30B-A3B": ("qwen3_moe", 30.53, 3.35),
    "Qwen__Qwen3-30B-A3B-FP8": ("qwen3_moe", 30.53, 3.35),
    "Qwen__Qwen3-Coder-480B-A35B-Instruct": ("qwen3_moe", 480.15, 35.47),
    "Qwen__Qwen3-Next-80B-A3B": ("qwen3_next", 79.67, 3.87),
    "XiaomiMiMo__MiMo-V2-Flash": ("mimo_v2_flash", 308.78, 15.45),
    "ai21labs__AI21-Jamba-1.5-Mini": ("jamba", 51.57, 12.11),
    "allenai__OLMoE-1B-7B-0824": ("olmoe", 6.92, 1.28),
    "alpindale__WizardLM-2-8x22B": ("mixtral", 140.62, 39.15),
    "arcee-ai__Trinity-Mini": ("afmoe", 26.12, 3.47),
    "baidu__ERNIE-4.5-21B-A3B-PT": ("ernie4_5_moe", 21.83, 3.35),
    "Qwen__Qwen3-VL-30B-A3B-Instruct": ("qwen3_vl_moe", 30.53, 3.35),
    "Qwen__Qwen3.5-35B-A3B": ("qwen3_5_moe", 34.66, 3.45),
    "bryce-hoehn__Qwen3.5-25B-REAP-A3B-Coding": ("qwen3_5_moe", 25.09, 3.45),
    "deepseek-ai__DeepSeek-V2-Lite": ("deepseek_v2", 15.71, 2.66),
    "deepseek-ai__DeepSeek-V2-Lite__maxtext-copy": ("deepseek_v2", 15.71, 2.66),
    "deepseek-ai__DeepSeek-V3": ("deepseek_v3", 671.03, 37.55),
    "deepseek-ai__DeepSeek-V3-Base": ("deepseek_v3", 671.03, 37.55),
    "deepseek-ai__DeepSeek-V3.2": ("deepseek_v32", 671.88, 38.40),
    "deepseek-ai__deepseek-moe-16b-base": ("deepseek_moe", 16.38, 2.83),
    "ibm-granite__granite-3.1-1b-a400m-instruct": ("granitemoe", 1.33, 0.43),
    "meta-llama__Llama-4-Scout-17B-16E-Instruct": ("llama4", 107.77, 17.17),
    "meta-llama__Llama-4-Scout-17B-16E-Instruct__ome-copy": ("llama4", 107.77, 17.17),
    "microsoft__Phi-3.5-MoE-instruct": ("phimoe", 41.87, 6.64),
    "mistralai__Mixtral-8x7B-v0.1": ("mixtral", 46.70, 12.88),
    "moonshotai__Kimi-K2-Instruct": ("kimi_k2", 1026.41, 32.86),
    "moonshotai__Kimi-K2.5": ("kimi_k2", 1026.41, 32.86),
    "nvidia__Kimi-K2.5-NVFP4": ("kimi_k2", 1026.41, 32.86),
    "nvidia__DeepSeek-V3.1-NVFP4": ("deepseek_v3", 671.03, 37.55),
    "nvidia__GLM-5-NVFP4": ("glm_moe_dsa", 743.91, 41.78),
    "nvidia__GLM-5.1-NVFP4": ("glm_moe_dsa", 743.91, 41.78),
    "nvidia__MiniMax-M2.7-NVFP4": ("minimax_m2", 228.69, 11.03),
    "nvidia__Qwen3-235B-A22B-NVFP4": ("qwen3_moe", 235.09, 22.19),
    "nvidia__Qwen3.5-122B-A10B-NVFP4": ("qwen3_5_moe", 122.11, 9.77),
    "nvidia__Qwen3.6-35B-A3B-NVFP4": ("qwen3_5_moe", 34.66, 3.45),
    "openai__gpt-oss-20b": ("gpt_oss", 20.91, 4.19),
    "openai__gpt-oss-20b__ome-copy": ("gpt_oss", 20.91, 4.19),
    "rednote-hilab__dots.llm1.inst": ("dots1", 142.77, 14.02),
    "tencent__Hunyuan-A13B-Instruct": ("hunyuan_v1_moe", 80.39, 12.75),
    "zai-org__GLM-4.5-Air": ("glm4_moe", 106.85, 13.42),
    "zai-org__GLM-4.7-Flash": ("glm4_moe_lite", 29.94, 3.90),
    "zai-org__GLM-5": ("glm_moe_dsa", 743.91, 41.78),
    "zai-org__GLM-5-FP8": ("glm_moe_dsa", 743.91, 41.78),
}

UNKNOWN = r"model_type '{}' is refused: its routed experts "
# For every other config, words of the refusal.
REFUSED = {
    "zai-org__GLM-5.2": "indexer_types .* lets layers use the index of an earlier layer",
    "nvidia__Gemma-4-31B-IT-NVFP4": "states no routed experts, so it is a dense model",
    "google__gemma-4-26B-A4B": "the router reads the residual stream as it is",
    "nvidia__NVIDIA-Nemotron-3-Nano-30B-A3B-BF16": "two matrices each, without a gate",
    "deepseek-ai__DeepSeek-V4-Flash": "by a hash of the token",
    "stepfun-ai__Step-3.7-Flash": "runs its language model within the larger one alone",
    "inclusionAI__Ling-lite-1.5": "transformers has no class for models of this type",
    "databricks__dbrx-base__ome-copy": "stated in ffn_config",
}


@pytest.mark.parametrize("name", FOLDERS)
def test_a_published_config_gets_a_true_verdict(name: str) -> None:
    if name in KNOWN:
        found = outline(CONFIGS / name)
        cost = cost_of(found.inventory)
        sizes = (round(cost.parameters / 1e9, 2), round(cost.active_parameters / 1e9, 2))
        assert (found.family.name, *sizes) == KNOWN[name]
        assert (found.stored is None) == (not quantised(CONFIGS / name))
        return
    with pytest.raises(CheckpointError) as refusal:
        outline(CONFIGS / name)
    words = REFUSED.get(name, UNKNOWN.format(stated(CONFIGS / name)))
    assert re.search(words, str(refusal.value)), refusal.value


def stated(folder: Path) -> str:
    """Return the model type by looking at the text, since two of the files are no strict JSON."""
    text = (folder / "config.json").read_text()
    outer = re.sub(r'"(text|vision|audio)_config": \{.*?\n    \}', "", text, flags=re.DOTALL)
    found = re.search(r'"model_type": "(\w+)"', outer)
    assert found is not None
    return found[1]


def quantised(folder: Path) -> bool:
    return '"quantization_config"' in (folder / "config.json").read_text() or (folder / "hf_quant_config.json").exists()


@pytest.mark.skipif(not FOLDERS, reason="the published configs do not lie beside the project")
def test_no_verdict_is_about_a_config_that_is_not_there() -> None:
    assert (KNOWN.keys() | REFUSED.keys()) <= set(FOLDERS) and not KNOWN.keys() & REFUSED.keys()
