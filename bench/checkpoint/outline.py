"""What a model will be once its weights are there: family and sizes from ``config.json``, and the index where there is one."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.checkpoint.config_file import read_config
from bench.checkpoint.weight_files import INDEX
from bench.families.compressed_config import QUANTISATION_KEY
from bench.families.family import Family, family_of
from methods.framework.errors import CheckpointError
from methods.framework.inventory import Inventory, TensorEntry
from methods.framework.outside import an_object, read_json

_QUANTISED = re.compile(
    r"(?P<module>.+)(\.weight_scale_inv|\.weight_scale(_2)?|\.weight_packed|\.weight_shape|\.weight_zero_point|\.input_scale"
    r"|\.[kv]_scale|_blocks|_scales)"
)
"""Tensors that hold a matrix in few bits, or say what its codes stand for."""


@dataclass(frozen=True, slots=True)
class Outline:
    """A model of which no weight was read.

    Args:
        path: folder.
        config: parsed ``config.json``.
        family: of the model.
        inventory: what it holds, every weight counted in the type that the config states for weights of 16 or 32 bits.
        stored: how its files hold the weights where that is another type; None: as the inventory has them.
        compared: tensors that the index names and that were compared with the inventory; None without an index.
    """

    path: Path
    config: Mapping[str, Any]
    family: Family
    inventory: Inventory
    stored: str | None
    compared: int | None


def has_weights(path: Path) -> bool:
    """Return whether a folder holds files of weights, whole or in part."""
    return any(path.glob("*.safetensors"))


def outline(path: Path) -> Outline:
    """Return what a folder without weights tells about its model.

    Args:
        path: holds ``config.json``, and maybe the index of the files.

    Raises:
        CheckpointError: the config makes no sense, asks for what its family cannot do, or the index names other tensors.
        NotMoEError: no routed experts, or of an unknown family.
    """
    config = read_config(path)
    whole = _without_quantisation(config)
    family = family_of(whole)
    inventory = family.inventory(whole)
    stored = _stored(config)
    compared = None
    if (path / INDEX).exists():
        names = _index_names(path / INDEX)
        compared = _compare(inventory, family, names, path, stored is not None)
    return Outline(path, config, family, inventory, stored, compared)


def _without_quantisation(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a config that says nothing about few bits, neither of the model nor of a part of it."""
    return {
        key: _without_quantisation(value) if isinstance(value, dict) else value
        for key, value in config.items()
        if key != QUANTISATION_KEY
    }


def _stored(config: Mapping[str, Any]) -> str | None:
    """Return in a few words how the files hold quantised weights; None where nothing states a quantisation."""
    parts = (config, *(value for value in config.values() if isinstance(value, dict)))
    stated = next((part[QUANTISATION_KEY] for part in parts if part.get(QUANTISATION_KEY) is not None), None)
    if stated is None:
        return None
    part = an_object(stated, f"{QUANTISATION_KEY} of config.json", CheckpointError)
    words = [part.get(key) for key in ("quant_method", "quant_algo", "format")]
    return " ".join(dict.fromkeys(str(word)[:40] for word in words if word)) or "a way that it does not name"


def _index_names(index: Path) -> Collection[str]:
    stated = an_object(read_json(index, CheckpointError, "fetch it again"), str(index), CheckpointError)
    return an_object(stated.get("weight_map"), f"weight_map of {index}", CheckpointError).keys()


def _compare(inventory: Inventory, family: Family, names: Collection[str], path: Path, quantised: bool) -> int:
    """Compare the names of an index with those that the config asks for, both ways, and return how many there are."""
    known = set(names)
    if quantised:
        stems = {match["module"] for name in names if (match := _QUANTISED.fullmatch(name))}
        known |= stems | {f"{stem}.weight" for stem in stems}
    used: set[str] = set()
    missing: list[str] = []
    for entry, experts in family.with_counts(inventory):
        found = [name for name in _names(entry, family, experts) if name in known]
        used.update(found)
        if not found:
            missing.append(entry.name)
    if missing:
        raise CheckpointError(
            f"{path / INDEX} lacks {len(missing)} tensors that the config asks for, {missing[0]} the first; it is another "
            f"model than the {family.name} that its config states, or it was changed"
        )
    if quantised:
        stems = {name.removesuffix(".weight") for name in used}
        used |= {name for name in names if (match := _QUANTISED.fullmatch(name)) and match["module"] in stems}
    globs = (*family.ignorable(inventory.config), *family.passed(inventory.config))
    left = [name for name in names if name not in used and not any(fnmatch.fnmatch(name, glob) for glob in globs)]
    if left:
        raise CheckpointError(
            f"{path / INDEX} names {len(left)} tensors that a {family.name} model does not have, {sorted(left)[0]} the first"
        )
    return len(names)


def _names(entry: TensorEntry, family: Family, experts: int) -> tuple[str, ...]:
    slot = family.fused_slot(entry, experts)
    return (*family.disk_names(entry), *(slot.names if slot is not None else ()))
