"""The room of keys and values: what the asked lengths need, and nothing where the user or vLLM decides."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench.serving.cache_room import TOGETHER, cache_bytes
from bench.serving.engine import engine_named
from bench.settings.timing_settings import CACHE_BYTES

PLENTY = 1 << 40
MIXTRAL_8X7B = {
    "max_position_embeddings": 32768,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "hidden_size": 4096,
    "torch_dtype": "bfloat16",
}
TOKEN = 32 * 2 * 8 * 128 * 2  # layers, keys and values, heads, their size, bytes of a number


def test_a_token_takes_what_its_keys_and_values_take() -> None:
    assert cache_bytes(MIXTRAL_8X7B, [], PLENTY) == TOKEN * 32768 * TOGETHER
    asked = ["--max-model-len", "4096", "--max-num-seqs=3"]
    assert cache_bytes(MIXTRAL_8X7B, asked, PLENTY) == TOKEN * 4096 * 3
    assert cache_bytes(MIXTRAL_8X7B, [*asked, "--dtype", "float32"], PLENTY) == 2 * TOKEN * 4096 * 3
    assert cache_bytes({"text_config": MIXTRAL_8X7B}, asked, PLENTY) == TOKEN * 4096 * 3
    # A length is rounded up to whole blocks of 128 tokens.
    assert cache_bytes(MIXTRAL_8X7B, ["--max-model-len", "4097", "--max-num-seqs=3"], PLENTY) == TOKEN * 4224 * 3


def test_latent_attention_keeps_one_vector_a_token() -> None:
    deepseek = {**MIXTRAL_8X7B, "kv_lora_rank": 512, "qk_rope_head_dim": 64}
    assert cache_bytes(deepseek, ["--max-num-seqs", "1"], PLENTY) == 32768 * 32 * (512 + 64) * 2


def test_a_small_model_gets_as_much_as_in_timings_and_half_of_the_free_memory_is_the_most() -> None:
    small = {**MIXTRAL_8X7B, "num_hidden_layers": 1, "max_position_embeddings": 512}
    assert cache_bytes(small, [], PLENTY) == CACHE_BYTES
    one = TOKEN * 32768
    assert cache_bytes(MIXTRAL_8X7B, [], 6 * one) == 3 * one
    assert cache_bytes(MIXTRAL_8X7B, [], one) is None


@pytest.mark.parametrize("said", ["--kv-cache-memory-bytes=7", "--gpu-memory-utilization", "--config=a.yaml"])
def test_what_the_user_says_of_memory_wins(said: str) -> None:
    assert cache_bytes(MIXTRAL_8X7B, [said], PLENTY) is None


def test_a_server_on_a_processor_is_given_the_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VLLM_CPU_KVCACHE_SPACE", raising=False)
    (tmp_path / "config.json").write_text(json.dumps({**MIXTRAL_8X7B, "max_position_embeddings": 128}))
    cpu, gpu = engine_named("vllm-cpu"), engine_named("vllm-gpu")
    command = cpu.server_command(tmp_path, ["--port", "1"])
    assert command[command.index("--kv-cache-memory-bytes") + 1] == str(CACHE_BYTES)
    assert "--kv-cache-memory-bytes" not in gpu.server_command(tmp_path, [])
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "2")
    assert "--kv-cache-memory-bytes" not in cpu.server_command(tmp_path, [])
