"""The config under which transformers builds the model of a checkpoint, by whatever name ``config.json`` calls it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformers import AutoConfig, PreTrainedConfig

from bench.families.family import Family


def model_config(family: Family, config: Mapping[str, Any]) -> PreTrainedConfig:
    """Return ``config`` as transformers parses it; of a larger model, that of its language model.

    Args:
        family: of the model.
        config: content of ``config.json``.
    """
    config = family.language_config(config)
    stated = {key: value for key, value in config.items() if key != "model_type"}
    return AutoConfig.for_model(family.file.loads_as or config["model_type"], **{**stated, **family.loads_with(config)})
