"""The ``quantization_config`` of a checkpoint made from a quantised source: the source's own, true for what is left of it."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Mapping
from typing import Any

from bench.families.source_formats import listed_modules, stored_formats
from bench.families.stored_formats import KEY, holds_values, is_quantised_role, module_of
from methods.framework.errors import PlanError
from methods.framework.inventory import Inventory
from methods.framework.plan import Plan

_LAYER = re.compile(r"(?<![\w])layers\.(\d+)(?=\.|$)", re.ASCII)
_EXPERT = re.compile(r"(?<![\w])experts\.(\d+)(?=\.|$)", re.ASCII)
_LITERAL = re.compile(r"[\w.-]+", re.ASCII)


def stored_config(config: Mapping[str, Any], plan: Plan, result: Inventory, fused: bool = False) -> dict[str, Any]:
    """Return the source's ``quantization_config`` with the modules of the result that hold their values excepted.

    Names of layers and experts follow those that stay. Where numbers change, patterns with numbers are replaced by the names
    of the modules that they except.

    Args:
        config: of the source.
        plan: what becomes of its layers.
        result: inventory of what the plan makes of it.
        fused: whether files of its family hold all experts of a layer in one tensor.

    Raises:
        PlanError: what is stored in this way cannot be written.
    """
    stated: dict[str, Any] = copy.deepcopy(dict(config[KEY]))
    before = stored_formats(config)
    assert before is not None
    if not fused and any(scheme.fused for scheme, _ in before.schemes):
        raise PlanError(
            f"experts that lie as {before.schemes[0][0].format} in one tensor for a whole layer are read here, but not written, "
            "and no reader takes them apart; convert the checkpoint to 16 bits first"
        )
    stood = stated.get(before.key)
    old = list(stood) if isinstance(stood, Mapping) else listed_modules(stated, before.key)
    listed = [name for one in old for name in _renamed(one, plan)]
    _list(stated, before.key, listed)
    formats = stored_formats({KEY: stated})
    assert formats is not None
    for layer in result.layers:
        plain = [e for e in layer.tensors if holds_values(e) and is_quantised_role(e.role) and formats.of(e)]
        for entry in plain:
            module = module_of(entry) if entry.expert is None else _experts(module_of(entry))
            listed.append(formats.entry_of(module, entry.expert is not None))
    _list(stated, before.key, listed)
    return stated


def _list(stated: dict[str, Any], key: str, listed: list[str]) -> None:
    """Put ``listed`` under ``key``, each once; a mapping stays one, and a key that is not there comes only for something."""
    stood, names = stated.get(key), dict.fromkeys(listed)
    if key == "dynamic":
        stood = stood if isinstance(stood, Mapping) else {}
        if names or key in stated:
            stated[key] = {name: stood.get(name, {}) for name in names}
    elif names or key in stated:
        stated[key] = list(names)


def _experts(module: str) -> str:
    """Return the module that holds all experts of a layer, given one of theirs."""
    expert = _EXPERT.search(module)
    return module if expert is None else module[: expert.start() + len("experts")]


def _renamed(name: str, plan: Plan) -> Iterator[str]:
    """Yield what an excepted module is called after ``plan``; nothing where it is gone, or is named anew by what it holds."""
    survivors = [index for index, layer in enumerate(plan.layers) if layer.drop != "block"]
    moved = survivors != list(range(len(plan.layers)))
    if not _LITERAL.fullmatch(name):
        if not re.search(r"\d", name) or not (moved or any(layer.experts is not None for layer in plan.layers)):
            yield name
        return
    layer = _LAYER.search(name)
    if layer is None:
        yield name
        return
    index = int(layer[1])
    if index >= len(plan.layers) and not moved:
        yield name
        return
    if index not in survivors:
        return
    expert, kept = _EXPERT.search(name), plan.layers[index].experts
    if expert is not None and kept is not None:
        if int(expert[1]) not in kept:
            return
        name = f"{name[: expert.start(1)]}{kept.index(int(expert[1]))}{name[expert.end(1) :]}"
    yield f"{name[: layer.start(1)]}{survivors.index(index)}{name[layer.end(1) :]}"
