"""Writing safetensors files from transfers, at the speed of a copy where nothing is computed."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench.applying.computed import Recipes
from bench.applying.places_in_files import Place, placed, units
from bench.checkpoint.checkpoint import Checkpoint
from bench.checkpoint.tensor_files import TORCH_DTYPES, write_all
from bench.checkpoint.weight_files import INDEX, SINGLE
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
    places = placed(items, checkpoint.family)
    shards = _split(items, places, shard_bytes)
    total = sum(item.target.nbytes for item in items)
    width = len(shards)
    names = [SINGLE] if width == 1 else [f"model-{i:05d}-of-{width:05d}.safetensors" for i in range(1, width + 1)]
    done = 0
    recipes = Recipes(checkpoint, moments, device)
    for name, shard in zip(names, shards, strict=True):
        for size in _write(checkpoint, recipes, [(items[i], places[i]) for i in shard], folder / name):
            done += size
            if progress is not None:
                progress(done, total)
    if width > 1:
        weight_map = {
            place.name: name for name, shard in zip(names, shards, strict=True) for i in shard for place in places[i]
        }
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
        (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _split(items: Sequence[Transfer], places: Sequence[tuple[Place, ...]], shard_bytes: int) -> list[list[int]]:
    """Fill shards in order with numbers of items; each holds at most ``shard_bytes``, or what must lie together."""
    shards: list[list[int]] = [[]]
    filled = 0
    for unit in units(items, places):
        size = sum(items[number].target.nbytes for number in unit)
        if shards[-1] and filled + size > shard_bytes:
            shards.append([])
            filled = 0
        shards[-1] += unit
        filled += size
    return shards


def _write(
    checkpoint: Checkpoint, recipes: Recipes, items: Sequence[tuple[Transfer, tuple[Place, ...]]], path: Path
) -> Iterator[int]:
    """Write one file and yield the size of each tensor when it is written."""
    # Wide elements first: every tensor then starts at a multiple of its element size, as readers expect.
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    starts: dict[str, int] = {}
    offset = 0
    tensors = {place.name: place for _, places in items for place in places}
    for place in sorted(tensors.values(), key=lambda place: -BYTES_PER_ELEMENT[place.dtype]):
        starts[place.name], start = offset, offset
        offset += math.prod(place.shape) * BYTES_PER_ELEMENT[place.dtype]
        header[place.name] = {"dtype": place.dtype, "shape": list(place.shape), "data_offsets": [start, offset]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb", buffering=0) as file:
        descriptor = file.fileno()
        write_all(descriptor, len(text).to_bytes(8, "little") + text)
        first = 8 + len(text)
        blocks = _Blocks(descriptor, {name: first + start for name, start in starts.items()})
        for (
            item,
            places,
        ) in items:  # in their own order, so that an expert that is computed gives all of its tensors at once
            for number, place in enumerate(places):
                if place.cut is not None:
                    own = checkpoint.piece(item.source, number) if item.recipe is None else recipes.tensor(item)
                    blocks.add(place, own)
                    continue
                os.lseek(descriptor, first + starts[place.name], os.SEEK_SET)
                if item.recipe is None:
                    checkpoint.copy_to(item.source, descriptor, item.rows, number)
                else:
                    write_all(descriptor, recipes.bytes_of(item))
            yield item.target.nbytes


class _Blocks:
    """What fused tensors hold of one expert, written when all of its parts are there."""

    def __init__(self, descriptor: int, starts: Mapping[str, int]) -> None:
        """Take an open file and where its tensors begin."""
        self._descriptor, self._starts = descriptor, starts
        self._begun: dict[tuple[str, int | None], tuple[Tensor, set[int]]] = {}

    def add(self, place: Place, part: Tensor) -> None:
        """Put ``part`` in its place, and write the expert if nothing of it is missing."""
        assert place.cut is not None and place.expert is not None
        key = (place.name, place.expert)
        if key not in self._begun:
            self._begun[key] = torch.empty(place.shape[1:], dtype=TORCH_DTYPES[place.dtype]), set()
        block, there = self._begun[key]
        # Codes lie in the file in groups, which make no difference to their bytes.
        rows = block.flatten(1) if block.dim() > 2 else block
        view = place.cut.of(rows)
        view.copy_(part.reshape(view.shape))
        there.add(place.cut.part)
        if len(there) == place.cut.parts:
            start = self._starts[place.name] + place.expert * block.numel() * block.element_size()
            flat: Any = block.reshape(-1).view(torch.uint8).numpy()
            os.lseek(self._descriptor, start, os.SEEK_SET)
            write_all(self._descriptor, memoryview(flat))
            del self._begun[key]
