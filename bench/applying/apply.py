"""Write the compressed checkpoint: one streaming pass over the source's files, finished in one atomic step."""

from __future__ import annotations

import errno
import json
import logging
import os
import shutil
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bench.applying.computed_by import computed_by
from bench.applying.moments import check_presence
from bench.applying.shards import write_shards
from bench.applying.written_moments import MomentsDigest, moments_digest
from bench.calibration.passing_stats import PassingStats
from bench.cards.model_card import SOURCE_COST, write_card
from bench.checkpoint.checkpoint import Checkpoint
from bench.checkpoint.config_file import MODELOPT_FILE
from bench.checkpoint.content import PLAN_FILE, plan_document
from bench.store.staging import staged_folder
from methods.framework.cost import cost_of
from methods.framework.errors import CheckpointError, PlanError
from methods.framework.inventory import Inventory
from methods.framework.plan import Plan
from methods.framework.stats import Stats
from methods.framework.transfer import result, transfers

_LOG = logging.getLogger("moebench.applying")
SHARD_BYTES = 5_000_000_000
_LARGEST_COPIED = 64 << 20
_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".h5", ".msgpack", ".onnx")

Progress = Callable[[int, int], None]
"""Called with bytes written and bytes to write."""


def apply(
    checkpoint: Checkpoint,
    plan: Plan,
    out: Path,
    provenance: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
    shard_bytes: int = SHARD_BYTES,
    moments: Stats | None = None,
    device: str = "cpu",
    measured: str | None = None,
) -> Path:
    """Write what ``plan`` makes of ``checkpoint`` to the folder ``out`` and return it.

    Tensors that stay are copied byte for byte under their classic names; merged and sparse experts, averaged router rows
    and constants are computed in float32, rounded to the dtype of their source, and stored once each. The folder appears
    under its name only after it was opened again and compared with the plan, so whatever stands there is complete. If it
    is there already, made from the same content and moments by the same plan, it is returned as it is.

    Args:
        checkpoint: the source.
        plan: what to make of it.
        out: folder to create; its parent is created too.
        provenance: added to ``plan.json`` beside the source's name, revision and content.
        progress: told the bytes done and to do.
        shard_bytes: files are split so that none holds more tensor bytes, unless one tensor alone does.
        moments: statistics of the source named in ``plan.moments``; needed for constants and for sparsity by inputs. Those of
            a pass are measured while the tensors are written, layer by layer.
        device: torch device on which experts are computed; sums in another order may round differently there.
        measured: ``moments_digest`` of all this, where the caller knows it already.

    Raises:
        PlanError: the plan does not fit the checkpoint.
        StatsError: the plan needs ``moments`` that are missing or of another model; nothing is written.
        CheckpointError: ``out`` holds something else, the disk is full, or the result does not read back.
    """
    inventory = checkpoint.inventory
    plan = plan.normalised(inventory)
    expected = result(plan, inventory)
    config = checkpoint.family.config_for(checkpoint.config, plan, expected)
    origin = {"name": checkpoint.name, "revision": checkpoint.revision, "content": checkpoint.content}
    digest = _digest_of(plan, inventory, moments, measured)
    maker = computed_by(plan, device)
    if _occupied(out) and _is_done(out, plan, origin, digest(), maker):
        return out
    if checkpoint.left_out:
        _LOG.warning(
            "%s: %d tensors of multi-token prediction (%s, ...) are left out; nothing here runs them, so results lack them",
            checkpoint.name,
            len(checkpoint.left_out),
            checkpoint.left_out[0],
        )
    needed = sum(entry.nbytes for entry in expected.tensors())
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        _check_space(out.parent, needed)
        with staged_folder(out) as folder:
            write_shards(checkpoint, list(transfers(plan, inventory)), folder, shard_bytes, progress, moments, device)
            copy_small_files(checkpoint.path, folder, anew=("config.json", MODELOPT_FILE, PLAN_FILE))
            _write_json(folder / "config.json", config)
            _write_json(folder / PLAN_FILE, _plan_document(checkpoint, plan, origin, digest(), maker, provenance))
            seal(folder, expected)
            write_card(folder)
    except OSError as error:
        if error.errno in (errno.EEXIST, errno.ENOTEMPTY) and _is_done(out, plan, origin, digest(), maker):
            return out  # another process finished the same work first
        raise CheckpointError(_why(error, out, needed)) from error
    return out


def _digest_of(plan: Plan, inventory: Inventory, moments: Stats | None, known: str | None) -> Callable[[], str | None]:
    """Return what tells ``moments_digest``; of a pass once all of its layers were measured.

    Args:
        plan: what is made of the source.
        inventory: the source.
        moments: statistics of the source.
        known: the digest, where the caller knows it already.
    """
    if known is not None or not plan.moments or not isinstance(moments, PassingStats):
        found = known or moments_digest(plan, inventory, moments)
        return lambda: found
    check_presence(plan.moments, moments)
    digest = MomentsDigest(plan, inventory)
    moments.layers.watch(lambda index: digest.add(index, moments))

    def finished() -> str:
        moments.layers.finish()
        return digest.hexdigest()

    return finished


def _occupied(out: Path) -> bool:
    """Return whether something stands at ``out``; an empty folder does not count."""
    return out.exists() and not (out.is_dir() and not any(out.iterdir()))


def _is_done(
    out: Path, plan: Plan, origin: Mapping[str, Any], measured: str | None, maker: Mapping[str, Any] | None
) -> bool:
    """Return whether ``out`` already holds this very result.

    Args:
        out: folder.
        plan: what it should have been made by.
        origin: name, revision and content of the source.
        measured: digest of the statistics that are written into it, if any are.
        maker: what computes its tensors, None where all are copied.

    Raises:
        CheckpointError: it holds something else.
    """
    if not _occupied(out):
        return False
    try:
        document = plan_document(out) or {}
        same = Plan.loads(json.dumps(document)).digest == plan.digest
        same = same and document["provenance"]["source"]["content"] == origin["content"]
        same = same and document["provenance"].get("moments") == measured
        before = document["provenance"].get("computed_by") if same else None
    except (CheckpointError, ValueError, KeyError, TypeError, AttributeError, PlanError):
        same, before = False, None
    if same and before != maker:
        raise CheckpointError(
            f"{out} exists and was computed by other versions of the libraries or of moebench, or on another device; remove it "
            "or choose another folder"
        )
    if not same:
        raise CheckpointError(f"{out} exists and holds something else; remove it or choose another folder")
    found = Checkpoint.open(out)
    found.close()
    return bool(found.content)


def _plan_document(
    checkpoint: Checkpoint,
    plan: Plan,
    origin: Mapping[str, Any],
    measured: str | None,
    maker: Mapping[str, Any] | None,
    provenance: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """Return ``plan.json``: the canonical plan, its origin, and the plan that made the source, if one did.

    Args:
        checkpoint: the source.
        plan: what is made of it.
        origin: name, revision and content of the source.
        measured: digest of the statistics that are written into it, if any are.
        maker: what computes its tensors, None where all are copied.
        provenance: added to it.
    """
    document: dict[str, Any] = json.loads(plan.dumps())
    sizes = asdict(cost_of(checkpoint.inventory))
    history: dict[str, Any] = {**(provenance or {}), "source": dict(origin), SOURCE_COST: sizes}
    for own in ("moments", "computed_by"):
        history.pop(own, None)
    if maker is not None:
        history["computed_by"] = dict(maker)
    if measured is not None:
        history["moments"] = measured
    if (earlier := plan_document(checkpoint.path)) is not None:
        history["before"] = earlier
    return {**document, "provenance": history}


def copy_small_files(source: Path, folder: Path, anew: Collection[str]) -> None:
    """Copy tokenizer, generation config, licence and the like to a new checkpoint; never weights or hidden files.

    Args:
        source: folder of the checkpoint that it is made from.
        folder: that of the new one.
        anew: names of files that are written anew.
    """
    for path in sorted(source.iterdir()):
        weights = path.suffix in _WEIGHTS or path.name.endswith(".index.json")
        if weights or path.name in anew or path.name.startswith(".") or not path.is_file():
            continue
        if path.stat().st_size <= _LARGEST_COPIED:
            shutil.copyfile(path, folder / path.name)


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def seal(folder: Path, expected: Inventory) -> None:
    """Open what was written, compare it with what was to be and with the model that transformers builds, and state its digest.

    The digest of everything that was written goes into ``plan.json``, and is compared whenever the folder is used again.

    Args:
        folder: the finished checkpoint, ``plan.json`` included.
        expected: what it should contain.

    Raises:
        CheckpointError: it differs.
    """
    from bench.models.load import check_loadable

    written = Checkpoint.open(folder)
    try:
        if written.inventory != expected:
            raise CheckpointError(f"{folder} does not read back as planned; this is a defect, please report it")
        check_loadable(written)
        document = json.loads((folder / PLAN_FILE).read_bytes())
        document["provenance"]["written"] = written.content
        _write_json(folder / PLAN_FILE, document)
    finally:
        written.close()


def _check_space(folder: Path, needed: int) -> None:
    """Raise OSError (no space) before writing what cannot fit."""
    if shutil.disk_usage(folder).free < needed:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _why(error: OSError, out: Path, needed: int) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return (
            f"cannot write {out}: {error.strerror}; it takes {needed / 2**30:.2f} GiB. The unfinished part was "
            "removed; free space or choose another disk and run again"
        )
    return f"cannot write {out}: {error.strerror}; the unfinished part was removed"
