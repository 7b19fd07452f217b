"""The safetensors files of a checkpoint: which there are by its index, and what all of their headers hold together."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bench.checkpoint.headers import Span, header_of, read_header
from bench.checkpoint.hub import HubModel
from methods.framework.errors import CheckpointError
from methods.framework.outside import an_object, read_json

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
_SHARD = re.compile(r"model-\d{5}-of-(\d{5})\.safetensors")
_LONGEST_NAME = 255
"""Bytes of a file's name that file systems allow."""


def weight_files(path: Path) -> list[str]:
    """Return the names of the safetensors files of a folder, whether they are there or not.

    Raises:
        CheckpointError: the index is damaged.
    """
    return sorted(set(_shard_of(path).values())) if (path / INDEX).exists() else [SINGLE]


def read_headers(path: Path, hub: HubModel | None = None) -> dict[str, Span]:
    """Return every tensor in the safetensors files of a folder.

    Args:
        path: the folder.
        hub: gives the headers of files that were not fetched yet; None: all must be there.

    Raises:
        CheckpointError: no weights, a shard or tensor that the index names is missing, or a damaged file.
    """
    index = path / INDEX
    if index.exists() and (path / SINGLE).exists():
        raise CheckpointError(
            f"{path} holds two models, {SINGLE} and the shards of {INDEX}, and readers differ in which they take; remove one"
        )
    if not index.exists():
        alone = _headers(path, [SINGLE], hub).get(SINGLE)
        if alone is None:
            raise _without_weights(path)
        return alone
    shard_of = _shard_of(path)
    shards = sorted(set(shard_of.values()))
    by_shard = _headers(path, shards, hub)
    if missing := [name for name in shards if name not in by_shard]:
        remedy = "fetch them again" if hub is None else "take another revision"
        raise CheckpointError(
            f"{path if hub is None else hub.name} lacks {len(missing)} of {len(shards)} shards: {', '.join(missing[:5])}; "
            f"{remedy}"
        )
    if absent := [name for name, shard in shard_of.items() if name not in by_shard[shard]]:
        raise CheckpointError(f"{path / shard_of[absent[0]]} lacks tensor {absent[0]} that {INDEX} says it holds")
    joined: dict[str, Span] = {}
    for spans in by_shard.values():
        if twice := sorted(joined.keys() & spans.keys()):
            files = " and ".join(span.file.name for span in (joined[twice[0]], spans[twice[0]]))
            raise CheckpointError(f"{path}: tensor {twice[0]} stands in two shards, {files}; remove the wrong one")
        joined |= spans
    return joined


def _headers(path: Path, files: list[str], hub: HubModel | None) -> dict[str, dict[str, Span]]:
    """Return the tensors of each file that is in the folder, or else on the hub."""
    absent = [name for name in files if not (path / name).exists()]
    far = hub.headers(absent) if hub is not None and absent else {}
    found: dict[str, dict[str, Span]] = {}
    for name in files:
        if name not in absent:
            found[name] = read_header(path / name)
        elif (header := far.get(name)) is not None:
            found[name] = header_of(path / name, *header)
    return found


def _shard_of(path: Path) -> Mapping[str, str]:
    """Return the file of each tensor as the index states it."""
    index, remedy = path / INDEX, "fetch it again"
    stated = an_object(read_json(index, CheckpointError, remedy), str(index), CheckpointError, remedy)
    shard_of = an_object(stated.get("weight_map"), f"weight_map of {index}", CheckpointError, remedy)
    files = {name if isinstance(name, str) else _no_name(name) for name in shard_of.values()}
    if strange := sorted(name for name in files if not _is_plain_name(name)):
        raise CheckpointError(
            f"{index} names files that are not in its own folder: {', '.join(name[:60] for name in strange[:3])}; fetch it again"
        )
    return shard_of


def _without_weights(path: Path) -> CheckpointError:
    others = sorted(p.name for p in path.glob("*") if p.suffix in (".bin", ".pt", ".pth", ".gguf", ".safetensors"))
    found = f"it has {', '.join(others[:5])}" if others else "it has no weights at all"
    if numbered := [match for name in others if (match := _SHARD.fullmatch(name))]:
        alone = len(numbered) == 1 and int(numbered[0][1]) == 1
        return CheckpointError(
            f"{path} has shards, {', '.join(match[0] for match in numbered[:3])}, but not the index that says what they "
            f"hold; " + (f"rename the only one to {SINGLE}" if alone else f"fetch {INDEX} too")
        )
    return CheckpointError(f"{path} has neither {SINGLE} nor {INDEX} ({found}); save the model as safetensors first")


def _no_name(value: Any) -> str:
    """Return what is no name of a file as text that is none either."""
    return f"/{value}"


def _is_plain_name(name: str) -> bool:
    plain = name not in ("", ".", "..") and not any(letter in name for letter in "/\\\0")
    return plain and len(name.encode("utf-8", "replace")) <= _LONGEST_NAME
