"""The output head of models that use their embedding for it, and may hold it a second time."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from bench.checkpoint.headers import Span
from bench.families.family import Family
from bench.families.wrapped_config import wrapped_name
from methods.framework.errors import CheckpointError
from methods.framework.inventory import Inventory
from methods.framework.outside import open_regular

_BUFFER = 8 << 20


def check_tied(inventory: Inventory, family: Family, headers: Mapping[str, Span], path: Path) -> None:
    """Check that a head which the config calls the embedding, and which is in the files all the same, is the embedding.

    Transformers uses a head of its own where the files hold another, against the config; whoever goes by the config does not.

    Args:
        inventory: what the config asks for.
        family: of the model.
        headers: every tensor in the files.
        path: folder of the checkpoint.

    Raises:
        CheckpointError: it is another.
    """
    if not inventory.tied_embeddings:
        return
    outer = {entry.role: entry.name for entry in inventory.outer}
    own = [rule.name for rule in family.file.tensors.outer if rule.role == "head"]
    heads = dict.fromkeys((*own, *(wrapped_name(family.file, name) for name in own)))
    embedding = headers.get(outer["embedding"])
    for name in heads:
        head = headers.get(name)
        if head is not None and embedding is not None and not _same(head, embedding):
            raise CheckpointError(
                f"{path} says tie_word_embeddings, but its {name} is not its {outer['embedding']}, and readers differ in "
                "which they use; set tie_word_embeddings to false in config.json if the model has a head of its own, or "
                f"else remove {name}"
            )


def _same(one: Span, other: Span) -> bool:
    """Return whether two tensors have the same type, shape and bytes."""
    if (one.dtype, one.shape) != (other.dtype, other.shape):
        return False
    files = [open_regular(span.file, CheckpointError) for span in (one, other)]
    try:
        for start in range(0, one.nbytes, _BUFFER):
            size = min(_BUFFER, one.nbytes - start)
            first, second = (
                os.pread(file, size, span.offset + start) for file, span in zip(files, (one, other), strict=True)
            )
            if first != second:
                return False
        return True
    finally:
        for file in files:
            os.close(file)
