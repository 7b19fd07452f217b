"""Values of a model's config that make no sense, whatever the family: wrong JSON types, absurd counts, unknown activations.

Everything here is looked at before anything is counted out or built, so that a damaged config is one error and no long wait.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from methods.framework.errors import CheckpointError

MOST_LAYERS = 4096
"""Decoder layers of the deepest model that is read; published ones have fewer than 200."""
MOST_EXPERTS = 1 << 18
"""Routed experts of all layers together; the largest published models have a tenth of it."""

WHOLE = (
    "decoder_sparse_step",
    "first_k_dense_replace",
    "head_dim",
    "hidden_size",
    "intermediate_size",
    "kv_lora_rank",
    "max_position_embeddings",
    "moe_intermediate_size",
    "n_group",
    "n_routed_experts",
    "n_shared_experts",
    "num_attention_heads",
    "num_experts",
    "num_experts_per_tok",
    "num_hidden_layers",
    "num_key_value_heads",
    "num_local_experts",
    "num_nextn_predict_layers",
    "q_lora_rank",
    "qk_nope_head_dim",
    "qk_rope_head_dim",
    "shared_expert_intermediate_size",
    "topk_group",
    "v_head_dim",
    "vocab_size",
)
SWITCHES = (
    "attention_bias",
    "mlp_bias",
    "norm_topk_prob",
    "qkv_bias",
    "tie_word_embeddings",
    "use_qk_norm",
    "use_sliding_window",
)
NUMBERS = ("rms_norm_eps", "rope_theta", "routed_scaling_factor")
TEXTS = ("dtype", "model_type", "scoring_func", "topk_method", "torch_dtype")
ACTIVATIONS = (
    "gelu",
    "gelu_10",
    "gelu_accurate",
    "gelu_fast",
    "gelu_new",
    "gelu_python",
    "gelu_python_tanh",
    "gelu_pytorch_tanh",
    "hardswish",
    "laplace",
    "leaky_relu",
    "linear",
    "mish",
    "quick_gelu",
    "relu",
    "relu2",
    "relu6",
    "sigmoid",
    "silu",
    "swish",
    "tanh",
)
"""Activations of experts that transformers knows by these names, but for those with parameters of their own."""


def check_values(config: Mapping[str, Any], counts: Iterable[str] = (), lists: Collection[str] = ()) -> None:
    """Check types and ranges of the keys that families, transformers and engines read; keys nobody reads may hold anything.

    Args:
        config: the parsed config.json.
        counts: further keys that hold whole numbers.
        lists: keys that may also hold a list with an entry for each layer.

    Raises:
        CheckpointError: names the key, what it holds and what it may hold.
    """
    for key in (*WHOLE, *counts):
        value = config.get(key)
        if key in lists and isinstance(value, list):
            if not _all(value, int) or min(value, default=0) < 0 or len(value) != config.get("num_hidden_layers"):
                raise _refused(key, value, "integers from 0 on, one for each layer")
        elif value is not None and (type(value) is not int or value < 0):
            raise _refused(key, value, "an integer from 0 on")
    for key in SWITCHES:
        if not isinstance(config.get(key), bool | None):
            raise _refused(key, config[key], "true or false")
    for key in NUMBERS:
        value = config.get(key)
        if value is not None and not _is_finite(value):
            raise _refused(key, value, "a finite number from 0 on")
    for key in TEXTS:
        if not isinstance(config.get(key), str | None):
            raise _refused(key, config[key], "text")
    if (value := config.get("mlp_only_layers")) is not None and not _all(value, int):
        raise _refused("mlp_only_layers", value, "a list of layer numbers")
    if (value := config.get("architectures")) is not None and not _all(value, str):
        raise _refused("architectures", value, "a list of names")
    layers = config.get("num_hidden_layers") or 0
    if layers > MOST_LAYERS:
        raise _refused("num_hidden_layers", layers, f"at most {MOST_LAYERS}")
    kinds = config.get("layer_types")
    if kinds is not None and not (_all(kinds, str) and len(kinds) == layers):
        raise _refused("layer_types", kinds, f"a list of {layers} names, one for each layer")
    activation = config.get("hidden_act", "silu")
    if activation not in ACTIVATIONS:
        raise _refused("hidden_act", activation, ", ".join(ACTIVATIONS))


def check_counts(layers: int, experts: int, key: str) -> None:
    """Check that a model has no more experts than can be looked at one by one.

    Args:
        layers: decoder layers.
        experts: routed experts of one of them.
        key: config key of that count.

    Raises:
        CheckpointError: it has more.
    """
    if layers > MOST_LAYERS:
        raise CheckpointError(f"config.json states {shown(layers)} layers; allowed: at most {MOST_LAYERS}")
    if layers * experts > MOST_EXPERTS:
        raise _refused(key, experts, f"at most {MOST_EXPERTS} experts in all {layers} layers together")


def _is_finite(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    # An integer of hundreds of digits is no float.
    return 0 <= value < 1e300 and math.isfinite(value)


def _all(value: Any, kind: type) -> bool:
    return isinstance(value, list | tuple) and all(type(one) is kind for one in value)


def _refused(key: str, value: Any, allowed: str) -> CheckpointError:
    return CheckpointError(
        f"config.json states {key} as {shown(value)}; allowed: {allowed}. Correct it, or fetch the checkpoint again"
    )


def shown(value: Any) -> str:
    """Return ``value`` for a message, short whatever it is."""
    if type(value) is int and value.bit_length() > 200:
        return "an integer of more than 60 digits"  # Python refuses to write the longest ones out
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}..."
