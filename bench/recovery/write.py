"""Write a recovered checkpoint: trained tensors from the model, all others copied byte for byte."""

from __future__ import annotations

import errno
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bench.applying.apply import SHARD_BYTES, copy_small_files, seal
from bench.applying.shards import write_shards
from bench.cards.model_card import SOURCE_COST, write_card
from bench.checkpoint.checkpoint import Checkpoint
from bench.checkpoint.content import PLAN_FILE, plan_document
from bench.checkpoint.tensor_files import TORCH_DTYPES, write_all
from bench.recovery.placed import held
from bench.store.staging import staged_folder
from methods.framework.cost import cost_of
from methods.framework.errors import CheckpointError
from methods.framework.inventory import TensorEntry
from methods.framework.plan import Plan
from methods.framework.transfer import Transfer


@dataclass(frozen=True, eq=False)
class TrainedCheckpoint(Checkpoint):
    """A checkpoint some of whose tensors have other values than its files.

    Args:
        trained: these tensors and their values; rounded to the dtype of the file where they are copied.
    """

    trained: dict[TensorEntry, Tensor] = field(default_factory=dict)

    def copy_to(self, entry: TensorEntry, descriptor: int, rows: Any = None, piece: int = 0) -> None:
        """Append the bytes of a tensor to an open file: its own values, or those of the file."""
        if entry not in self.trained:
            return super().copy_to(entry, descriptor, rows, piece)
        flat: Any = self.piece(entry).reshape(-1).view(torch.uint8).numpy()
        write_all(descriptor, memoryview(flat))

    def piece(self, entry: TensorEntry, piece: int = 0) -> Tensor:
        """Return a piece of a tensor: its own values, or those of the file."""
        if entry not in self.trained:
            return super().piece(entry, piece)
        return self.trained[entry].to(device="cpu", dtype=TORCH_DTYPES[entry.dtype]).contiguous()


def read_plan_document(checkpoint: Checkpoint) -> dict[str, Any] | None:
    """Return ``plan.json`` of a checkpoint, None where it has none.

    Raises:
        CheckpointError: it is damaged.
    """
    document = plan_document(checkpoint.path)
    if document is not None:
        Plan.loads(json.dumps(document))
    return document


def with_recovery(
    document: Mapping[str, Any] | None, checkpoint: Checkpoint, entry: Mapping[str, Any]
) -> dict[str, Any]:
    """Return ``plan.json`` of the result: that of ``checkpoint`` with ``entry`` after the recoveries that it states.

    An uncompressed checkpoint gets the plan that changes nothing.

    Args:
        document: ``plan.json`` of ``checkpoint``, None where it has none.
        checkpoint: what was trained.
        entry: the training, as provenance.
    """
    if document is None:
        source = {"name": checkpoint.name, "revision": checkpoint.revision, "content": checkpoint.content}
        told = {"source": source, SOURCE_COST: asdict(cost_of(checkpoint.inventory))}
        document = {**Plan.identity(checkpoint.inventory).document(), "provenance": told}
    provenance = {name: value for name, value in (document.get("provenance") or {}).items() if name != "written"}
    return {**document, "provenance": {**provenance, "recovery": [*provenance.get("recovery", ()), dict(entry)]}}


def write_recovered(
    checkpoint: Checkpoint, model: nn.Module, trained: tuple[str, ...], out: Path, document: Mapping[str, Any]
) -> None:
    """Write the checkpoint ``out`` in one atomic step.

    Args:
        checkpoint: what was recovered.
        model: its model after training.
        trained: names of the parameters that may differ.
        out: folder that does not exist yet.
        document: its ``plan.json``.

    Raises:
        CheckpointError: the disk refuses, or what was written does not read back.
    """
    source = TrainedCheckpoint.open(checkpoint.path)
    source.trained.update(held(model, checkpoint, trained))
    items = [Transfer(entry, entry) for entry in checkpoint.inventory.tensors()]
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with staged_folder(out) as folder:
            write_shards(source, items, folder, SHARD_BYTES)
            copy_small_files(checkpoint.path, folder, anew=(PLAN_FILE,))
            (folder / PLAN_FILE).write_text(json.dumps(document, indent=2, sort_keys=True) + "\n", encoding="utf-8")
            seal(folder, checkpoint.inventory)
            write_card(folder)
    except OSError as error:
        if error.errno in (errno.EEXIST, errno.ENOTEMPTY):
            return  # another process finished the same work first
        raise CheckpointError(f"cannot write {out}: {error.strerror}; the unfinished part was removed") from error
    finally:
        source.close()
