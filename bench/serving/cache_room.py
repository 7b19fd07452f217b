"""How much memory the keys and values of the requests that a server is asked to take need."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from bench.settings.timing_settings import CACHE_BYTES

TOGETHER = 8
"""Requests of full length that find room together where nobody says how many there are."""
_BLOCK = 128
"""Tokens of a cache block on a processor, to which each request is rounded up."""
_SAID = ("--kv-cache-memory-bytes", "--gpu-memory-utilization", "--num-gpu-blocks-override", "--config")
"""Options by which a user decides for himself."""


def cache_bytes(config: Mapping[str, Any], arguments: Sequence[str], available: int) -> int | None:
    """Return the bytes of a cache for ``vllm serve``, or None where the user or vLLM decides.

    vLLM's own answer for a processor is a share of all memory, which a small model does not need and a machine with
    other work does not have.

    Args:
        config: content of ``config.json``.
        arguments: of the server, as given by the user.
        available: bytes of memory that are free; where half of them do not hold one request of full length, vLLM decides.
    """
    told = {word.partition("=")[0] for word in arguments}
    text = config.get("text_config", config)
    length = _number(arguments, "--max-model-len") or text.get("max_position_embeddings")
    layers = text.get("num_hidden_layers")
    if told & set(_SAID) or not isinstance(length, int) or not isinstance(layers, int):
        return None
    if "kv_lora_rank" in text:
        width = int(text["kv_lora_rank"]) + int(text.get("qk_rope_head_dim", 0))
    else:
        heads = int(text.get("num_attention_heads", 1))
        each = text.get("head_dim") or -(-int(text.get("hidden_size", 0)) // heads)
        width = 2 * int(text.get("num_key_value_heads") or heads) * int(each)
    dtype = _value(arguments, "--dtype")
    if dtype in (None, "auto"):
        dtype = str(text.get("dtype") or text.get("torch_dtype") or config.get("dtype") or config.get("torch_dtype"))
    one = -(-length // _BLOCK) * _BLOCK * layers * width * (4 if dtype in ("float32", "float") else 2)
    most = available // 2
    if one > most:
        return None
    wanted = one * (_number(arguments, "--max-num-seqs") or TOGETHER)
    return max(min(max(wanted, CACHE_BYTES), most), one)


def _value(arguments: Sequence[str], option: str) -> str | None:
    """Return the last value of an option, written ``--option value`` or ``--option=value``."""
    found = None
    for place, word in enumerate(arguments):
        if word.startswith(f"{option}="):
            found = word.partition("=")[2]
        elif word == option and place + 1 < len(arguments):
            found = arguments[place + 1]
    return found


def _number(arguments: Sequence[str], option: str) -> int | None:
    """Return a value that is a plain number, None for others, such as 4k."""
    value = _value(arguments, option)
    return int(value) if value is not None and value.isdigit() else None
