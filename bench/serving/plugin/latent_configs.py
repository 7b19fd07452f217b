"""Configs of models with latent attention, whose per-layer values vLLM refuses to see.

vLLM reads ``per_layer_config`` of ordinary models by itself, but stops at a model that has it together with latent attention
(MLA). For these types the values are kept under a name of our own, so that vLLM sees the model-wide ones alone.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from bench.families.known_families import read_families

KEY = "moebench_layers"
"""Attribute of the config that holds what ``per_layer_config`` states in ``config.json``."""

_SERVED = {family.architecture for family in read_families().values() if family.vllm is not None}

LATENT = {
    model_type: family.loads_as or model_type
    for family in read_families().values()
    if family.architecture in _SERVED and any(rule.role == "attention.kv_a" for rule in family.tensors.layer)
    for model_type in family.model_types
}
"""Model types with latent attention, whose keys and values come from one small projection, and what transformers calls them."""


def register_configs() -> None:
    """Make transformers' ``AutoConfig`` read configs of the types ``LATENT`` with their per-layer values put aside."""
    from transformers import AutoConfig
    from vllm.transformers_utils.config import _CONFIG_REGISTRY

    for model_type in LATENT:
        AutoConfig.register(model_type, _class_of(model_type), exist_ok=True)
        if model_type in _CONFIG_REGISTRY:  # vLLM's own, which it asks before that of transformers
            _CONFIG_REGISTRY[model_type] = _class_of(model_type)


@cache
def _class_of(model_type: str) -> type[Any]:
    """Return the config class of ``model_type`` that renames ``per_layer_config`` while it reads."""
    from transformers import CONFIG_MAPPING

    stock: Any = CONFIG_MAPPING[LATENT[model_type]]

    def from_dict(cls: type[Any], config_dict: dict[str, Any], /, **kwargs: Any) -> Any:
        document = dict(config_dict)
        if layers := document.pop("per_layer_config", None):
            document[KEY] = layers
        return stock.from_dict.__func__(cls, document, **kwargs)

    members = {"from_dict": classmethod(from_dict), KEY: None, "model_type": model_type, "__module__": __name__}
    return type(f"{stock.__name__}Of{model_type}", (stock,), members)


def __getattr__(name: str) -> Any:
    """Return a config class by its name, as vLLM's other processes ask for it when they unpickle a config."""
    if not name.startswith("__"):
        for model_type in LATENT:
            if _class_of(model_type).__name__ == name:
                return _class_of(model_type)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def document_of(config: Any) -> dict[str, Any]:
    """Return the content of ``config.json`` that ``config`` was read from, as far as families need it."""
    document: dict[str, Any] = config.to_dict()
    if layers := document.pop(KEY, None):
        document["per_layer_config"] = layers
    return document
