"""Writing safetensors files from transfers, at the speed of a copy where nothing is computed."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from bench.applying.computed import Recipes
from bench.checkpoint.checkpoint import INDEX, SINGLE, Checkpoint
from bench.checkpoint.tensor_files import write_all
from methods.framework.inventory import BYTES_PER_ELEMENT
from methods.framework.stats import Stats
from methods.framework.transfer import Transfer


def write_shards(
    checkpoint: Checkpoint,
    items: list[Transfer],
    folder: Path,
    shard_bytes: int,
    progress: Callable[[int, int], None] | None = None,
    moments: Stats | None = None,
    device: str = "cpu",
) -> None:
    """Write all ``items`` to ``folder`` in Hugging Face naming, with an index when there is more than one file.

    Args:
        checkpoint: the source that tensors are copied or computed from.
        items: tensors of the result and where each comes from, in the order in which files are filled.
        folder: an existing folder, which gets the files.
        shard_bytes: size at which a new file begins; a tensor that is larger has a file of its own.
        progress: called with the bytes that are written and those of all tensors, after each tensor.
        moments: statistics that computed tensors depend on; None where nothing depends on any.
        device: where tensors are computed that are not copied.

    Raises:
        OSError: the disk refuses.
    """
    shards = _split(items, shard_bytes)
    total = sum(item.target.nbytes for item in items)
    width = len(shards)
    names = [SINGLE] if width == 1 else [f"model-{i:05d}-of-{width:05d}.safetensors" for i in range(1, width + 1)]
    done = 0
    recipes = Recipes(checkpoint, moments, device)
    for name, shard in zip(names, shards, strict=True):
        for size in _write(checkpoint, recipes, shard, folder / name):
            done += size
            if progress is not None:
                progress(done, total)
    if width > 1:
        placed = ((name, item) for name, shard in zip(names, shards, strict=True) for item in shard)
        weight_map = {piece.name: name for name, item in placed for piece in item.target.pieces()}
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
        (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _split(items: list[Transfer], shard_bytes: int) -> list[list[Transfer]]:
    """Fill shards in order; each holds at most ``shard_bytes``, or one tensor."""
    shards: list[list[Transfer]] = [[]]
    filled = 0
    for item in items:
        if shards[-1] and filled + item.target.nbytes > shard_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(item)
        filled += item.target.nbytes
    return shards


def _write(checkpoint: Checkpoint, recipes: Recipes, items: list[Transfer], path: Path) -> Iterator[int]:
    """Write one file and yield the size of each tensor when it is written."""
    # Wide elements first: every tensor then starts at a multiple of its element size, as readers expect.
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    starts: dict[str, int] = {}
    offset = 0
    pieces = (piece for item in items for piece in item.target.pieces())
    for piece in sorted(pieces, key=lambda piece: -BYTES_PER_ELEMENT[piece.dtype]):
        starts[piece.name], start = offset, offset
        offset += piece.nbytes
        header[piece.name] = {"dtype": piece.dtype, "shape": list(piece.shape), "data_offsets": [start, offset]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb", buffering=0) as file:
        descriptor = file.fileno()
        write_all(descriptor, len(text).to_bytes(8, "little") + text)
        first = 8 + len(text)
        for item in items:  # in their own order, so that an expert that is computed gives all of its tensors at once
            for number, piece in enumerate(item.target.pieces()):
                os.lseek(descriptor, first + starts[piece.name], os.SEEK_SET)
                if item.recipe is None:
                    checkpoint.copy_to(item.source, descriptor, item.rows, number)
                else:
                    write_all(descriptor, recipes.bytes_of(item))
            yield item.target.nbytes
