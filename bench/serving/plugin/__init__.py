"""The vLLM plug-in: serves checkpoints whose layers differ, without changing vLLM.

vLLM calls ``register`` in every process (entry point ``vllm.general_plugins``). It adds one architecture for each family,
``Moebench<stock name>``, which is what our checkpoints state in ``config.json`` when no stock class can load them.
"""

from __future__ import annotations

from collections.abc import Mapping

from bench.families.compressed_config import PREFIX
from bench.families.family_file import VllmRule
from bench.families.known_families import read_families

STOCK: Mapping[str, VllmRule] = {
    name: family.vllm
    for family in read_families().values()
    if family.vllm is not None
    for name in (family.architecture, family.vllm.architecture)
    if name is not None
}
"""What the family files state of vLLM's classes, by the names that a config may give: transformers' own, and vLLM's."""


def register() -> None:
    """Tell vLLM's registry where our classes are; nothing is imported until one of them is asked for."""
    from vllm import ModelRegistry

    from bench.serving.plugin.latent_configs import register_configs

    register_configs()
    for name in STOCK:
        if PREFIX + name not in ModelRegistry.models:
            ModelRegistry.register_model(PREFIX + name, f"bench.serving.plugin.model_classes:{PREFIX}{name}")
