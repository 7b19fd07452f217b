"""Recovery of a compressed checkpoint, from its folder to the folder of the trained one."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from bench.calibration.code_digest import TRAINING, code_digest
from bench.checkpoint.checkpoint import Checkpoint
from bench.checkpoint.content import plan_document
from bench.models.device import resolved_device
from bench.models.load import load_model
from bench.recovery.loop import History, Progress, train
from bench.recovery.objectives import ExpertDistillation, LanguageModelling, Objective, RouterDistillation
from bench.recovery.pairs import layer_pairs
from bench.recovery.text import Windows, steps_of, training_text
from bench.recovery.trained_weights import prepared
from bench.recovery.write import read_plan_document, with_recovery, write_recovered
from bench.recovery.zeros import is_sparse, kept_weights, still_zeros
from bench.settings.recovery import RecoverySettings
from bench.store.store import Store, digest_of
from bench.store.versions import versions
from bench.text.corpus import Corpus
from methods.framework.errors import CheckpointError, RefusedError
from methods.framework.plan import Plan

PROCEDURE = 2
"""Raised whenever the same settings would train in another way, so that nothing older is taken for it."""


@dataclass(frozen=True)
class Recovered:
    """A finished recovery.

    Args:
        path: folder of the trained checkpoint.
        digest: of everything that determines it.
        corpus: name of the text.
        corpus_digest: digest of its token ids.
        tokens: tokens trained on, repetitions counted.
        steps: steps of the optimiser.
        trained_parameters: weights that it moved; of LoRA those of the adapters.
        seconds: CPU seconds of the training, whenever it was made.
        wall: its seconds by the clock.
        losses: mean loss of the first and of the last tenth of the steps.
    """

    path: Path
    digest: str
    corpus: str
    corpus_digest: str
    tokens: int
    steps: int
    trained_parameters: int
    seconds: float
    wall: float
    losses: tuple[float, float]


def recover(
    path: str | Path,
    settings: RecoverySettings,
    *,
    teacher: str | Path | None = None,
    store_folder: Path,
    save_every: int = 100,
    progress: Progress | None = None,
    trust_remote_code: bool = False,
) -> Recovered:
    """Train the checkpoint in ``path`` and return where the result is and what it took.

    The result has the same tensors, in names, shapes and dtypes; those that were not trained are the same bytes. Weights of
    experts that a plan made zero stay zero. It is found again by its content, and a recovery that was interrupted goes on
    from its last state, to the same weights.

    Args:
        path: folder of a compressed checkpoint (or hub id, or the name of a pocket model).
        settings: what to train, how, and on what.
        teacher: the uncompressed checkpoint; read by ``router_kd`` and ``expert_kd`` alone.
        store_folder: store that the result goes to.
        save_every: steps between two states on disk.
        progress: told the steps done and to do, and the loss.
        trust_remote_code: whether the tokenizer may run Python code that lies in ``path``.

    Raises:
        RefusedError: there is no teacher, or one that does not fit, or nothing to train.
        ConfigError: the text is missing or too short, or the training runs away.
        CheckpointError: a checkpoint cannot be read, or the result not be written.
    """
    checkpoint = Checkpoint.open(path, trust_remote_code=trust_remote_code)
    source = _teacher(checkpoint, settings, teacher)
    corpus = training_text(settings, checkpoint)
    document = read_plan_document(checkpoint)
    key = {
        "procedure": PROCEDURE,
        "student": checkpoint.content,
        "plan": None if document is None else Plan.loads(json.dumps(document)).digest,
        "sparse": is_sparse(document),
        "teacher": None if source is None else source.content,
        "settings": settings.resolved(),
        "device": resolved_device(settings.device).partition(":")[0],
        "corpus": corpus.digest,
        "versions": versions("peft"),
        "code": code_digest(TRAINING),
    }
    digest = digest_of(key)
    store = Store(store_folder)
    out = store.checkpoints / f"{checkpoint.content[:12]}-recovered-{digest[:12]}"
    if not out.exists():
        work = store.cache / "recovery" / digest[:32]
        history, count, model, parts = _trained(
            checkpoint, source, settings, corpus, document, work / "state.pt", save_every, progress
        )
        entry = _entry(key, digest, settings, corpus, history, count)
        write_recovered(checkpoint, model, parts, out, with_recovery(document, checkpoint, entry))
        shutil.rmtree(work, ignore_errors=True)
    return _read(out, digest)


def _teacher(checkpoint: Checkpoint, settings: RecoverySettings, teacher: str | Path | None) -> Checkpoint | None:
    """Return the opened teacher where the kind reads one."""
    if not settings.needs_teacher:
        return None
    if teacher is None:
        raise RefusedError(
            f"{settings.kind} learns from the uncompressed model, and none was given; name it as teacher, or choose lora or "
            "full"
        )
    source = Checkpoint.open(teacher)
    if source.inventory.vocab != checkpoint.inventory.vocab:
        raise RefusedError(
            f"the teacher {source.name} has {source.inventory.vocab} words and {checkpoint.name} has "
            f"{checkpoint.inventory.vocab}: it is another model's; give the one that was compressed"
        )
    return source


def _trained(
    checkpoint: Checkpoint,
    source: Checkpoint | None,
    settings: RecoverySettings,
    corpus: Corpus,
    document: Mapping[str, Any] | None,
    state: Path,
    save_every: int,
    progress: Progress | None,
) -> tuple[History, int, PreTrainedModel, tuple[str, ...]]:
    """Return what the training did, how many weights it moved, the model, and the names of the parameters that differ."""
    device = resolved_device(settings.device)
    dtype = getattr(torch, settings.dtype)
    with torch.random.fork_rng():
        torch.manual_seed(settings.seed)
        model = load_model(checkpoint.complete(), dtype=dtype).to(device)
        kept = kept_weights(model, checkpoint) if settings.trains_experts and is_sparse(document) else {}
        trained = prepared(model, checkpoint, settings, kept)
        objective: Objective = LanguageModelling(model)
        if source is not None:
            teacher = load_model(source.complete(), dtype=dtype).to(device).requires_grad_(False)
            if settings.kind == "router_kd":
                objective = RouterDistillation(model, teacher, settings.temperature)
            else:
                pairs = layer_pairs(model, checkpoint, teacher, source, document)
                objective = ExpertDistillation(model, pairs, settings.balance)
        model.train()
        steps = steps_of(settings, len(corpus.windows))
        with still_zeros(model, kept):
            windows = Windows(corpus, settings)
            history = train(trained.weights, objective, windows, steps, settings, state, save_every, progress)
        count = sum(weight.numel() for weight in trained.weights.values())
        return history, count, trained.finish(), trained.parts


def _entry(
    key: Mapping[str, Any], digest: str, settings: RecoverySettings, corpus: Corpus, history: History, count: int
) -> dict[str, Any]:
    """Return what ``plan.json`` states about a recovery."""
    steps = len(history.losses)
    return {
        **key,
        "digest": digest,
        "corpus": {"name": corpus.name, "digest": corpus.digest},
        "tokens": steps * settings.batch * len(corpus.windows[0]),
        "steps": steps,
        "trained_parameters": count,
        "seconds": round(history.seconds, 3),
        "wall": round(history.wall, 3),
        "losses": [round(loss, 6) for loss in history.losses],
    }


def _read(out: Path, digest: str) -> Recovered:
    """Return the recovery that ``out`` holds.

    Raises:
        CheckpointError: it holds something else.
    """
    try:
        entry = (plan_document(out) or {})["provenance"]["recovery"][-1]
        if entry["digest"] != digest:
            raise KeyError(digest)
    except (CheckpointError, KeyError, TypeError, IndexError) as error:
        raise CheckpointError(f"{out} exists and holds something else; remove it or choose another store") from error
    Checkpoint.open(out).close()
    losses = entry["losses"]
    tenth = max(1, len(losses) // 10)
    return Recovered(
        path=out,
        digest=digest,
        corpus=entry["corpus"]["name"],
        corpus_digest=entry["corpus"]["digest"],
        tokens=entry["tokens"],
        steps=entry["steps"],
        trained_parameters=entry["trained_parameters"],
        seconds=entry["seconds"],
        wall=entry["wall"],
        losses=(sum(losses[:tenth]) / tenth, sum(losses[-tenth:]) / tenth),
    )
