"""Models whose language model is a part of a larger one: its config stands within another, its tensors have a longer prefix.

What the config of the language model says is read as though it stood alone (``language_config``), and what becomes of it is put
back in its place (``rewrapped``). Everything else of the larger model is carried over as it is.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from bench.families.config_values import shown
from bench.families.family_file import FamilyFile
from methods.framework.errors import CheckpointError

_OUTER = ("architectures", "quantization_config")
"""Keys that a wrapper states for its language model too."""
_EITHER = ("dtype", "torch_dtype")
"""Keys that a wrapper may state in the place of its language model."""
_TIED = "tie_word_embeddings"


def is_wrapped(family: FamilyFile, config: Mapping[str, Any]) -> bool:
    """Return whether ``config`` holds the config of the language model within itself."""
    return family.wrapper is not None and isinstance(config.get(family.wrapper.config), Mapping)


def check_wrapped(family: FamilyFile, config: Mapping[str, Any]) -> None:
    """Check that a config has the form which its model type means, and does not contradict itself.

    Raises:
        CheckpointError: it has another.
    """
    wrapper = family.wrapper
    if wrapper is None:
        return
    kind = config.get("model_type")
    if not is_wrapped(family, config):
        if kind in wrapper.model_types:
            raise CheckpointError(
                f"a config of model_type {shown(kind)} holds the config of its language model under {wrapper.config}, but "
                f"this one states {shown(config.get(wrapper.config))} there; fetch it again"
            )
        if not wrapper.alone:
            raise CheckpointError(
                f"a config of model_type {shown(kind)} alone is refused, since transformers runs such language models only "
                f"within a {' or '.join(wrapper.model_types)}; take the checkpoint of that"
            )
        return
    inner = config[wrapper.config]
    allowed = (*family.model_types, *wrapper.inner)
    if kind not in wrapper.model_types or inner.get("model_type", family.model_types[0]) not in allowed:
        raise CheckpointError(
            f"config.json states model_type {shown(kind)} with {wrapper.config} of {shown(inner.get('model_type'))}; "
            f"{family.name} models are {' or '.join(wrapper.model_types)} with {' or '.join(allowed)}"
        )
    values = [part[_TIED] for part in (config, inner) if part.get(_TIED) is not None]
    if len(set(map(str, values))) > 1:
        raise CheckpointError(
            f"config.json states {_TIED} as {shown(values[0])}, and its {wrapper.config} as {shown(values[1])}, and readers "
            "differ in which they take; make them agree"
        )


def language_config(family: FamilyFile, config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the config of the language model alone; of a model that is one, its own."""
    if family.wrapper is None or not is_wrapped(family, config):
        return config
    inner = {"model_type": family.model_types[0], **config[family.wrapper.config]}
    for key in (*_OUTER, *_EITHER, _TIED):
        if key in config and (key in _OUTER or inner.get(key) is None):
            inner[key] = config[key]
    return inner


def rewrapped(family: FamilyFile, config: Mapping[str, Any], written: dict[str, Any]) -> dict[str, Any]:
    """Return ``config`` with the config of its language model replaced by ``written``.

    Args:
        family: of the model.
        config: of the source, left as it is.
        written: what became of ``language_config`` of it.
    """
    if family.wrapper is None or not is_wrapped(family, config):
        return written
    outer = copy.deepcopy(dict(config))
    stood = config[family.wrapper.config]
    for key in _OUTER:
        inside = key in stood and key not in config
        outer.pop(key, None)
        if key in written and not inside:
            outer[key] = written.pop(key)
    added = [key for key in (*_EITHER, _TIED, "model_type") if key in written and key not in stood]
    outer[family.wrapper.config] = {key: value for key, value in written.items() if key not in added}
    return outer


def wrapped_name(family: FamilyFile, name: str) -> str:
    """Return the name that a tensor of the language model has within the larger one."""
    if family.wrapper is None:
        return name
    own, longer = family.wrapper.prefix
    return longer + name.removeprefix(own) if name.startswith(own) else name


def own_name(family: FamilyFile, name: str) -> str:
    """Return the name that a tensor has where the language model stands alone."""
    if family.wrapper is None:
        return name
    own, longer = family.wrapper.prefix
    return own + name.removeprefix(longer) if name.startswith(longer) else name
