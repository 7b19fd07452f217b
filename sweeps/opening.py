"""Open what all trials of a sweep share: load the model, measure its statistics, read the held-out windows."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from bench.calibration.calibrate import calibrate
from bench.checkpoint.checkpoint import Checkpoint
from bench.models.device import resolved_device
from bench.models.load import load_model, load_tokenizer
from bench.probing.model_probe import ModelProbe
from bench.settings.stage_settings import Bos, CalibrationConfig
from bench.store.store import Store
from bench.text.apart import Apart
from bench.text.corpus import Corpus, has_conversations, parse, replayed
from bench.text.template import Talk
from methods.framework.errors import ConfigError, MoebenchError
from methods.framework.stats import CATALOGUE
from sweeps.resident import Resident, Windows
from sweeps.space.dimension import corners
from sweeps.sweep_config import SweepConfig

if TYPE_CHECKING:
    from torch import Tensor

_COMBINATIONS = 4096
"""Combinations of knobs that are asked for what they need."""


def open_resident(config: SweepConfig, store: Path, judge: Windows | None = None) -> Resident:
    """Load the model, measure (or recall) what the trials need, and read the held-out windows.

    Args:
        config: the sweep.
        store: folder of the store.
        judge: further windows, which keep apart from all others; None: none.

    Raises:
        MoebenchError: the model, a corpus or a task cannot be read.
        ConfigError: held-out windows that the statistics are measured on.
    """
    checkpoint = Checkpoint.open(config.model, config.revision, config.trust_remote_code)
    include_path = None if config.include_path is None else Path(config.include_path)
    _check(config, checkpoint, include_path)
    settings, folder, device = config.calibration, Store(store).cache, resolved_device(config.device)

    needs = union_of_needs(config)
    of_tokens = any(CATALOGUE[name].cost != "weights" for name in needs)
    sliced = next((label for label, objective in config.labelled.items() if objective.calibration_sequences), None)
    if sliced and settings.answers_only:
        raise ConfigError(
            f"objective {sliced} reads whole windows of the calibration text, of which answers_only counts a part; give the "
            "objective windows of its own, or count every token (answers_only: false)"
        )
    text = _calibration(settings, checkpoint) if of_tokens or sliced else None
    held_out = _held_out(config, checkpoint, text, judge)
    stats = calibrate(
        checkpoint,
        text if of_tokens else None,
        needs,
        cache=folder / "stats",
        device=device,
        sampled_tokens=settings.sampled_tokens,
    )

    def probe() -> ModelProbe:
        corpus = text or _calibration(settings, checkpoint)
        return ModelProbe(checkpoint, corpus, tokens=settings.sampled_tokens, device=device, cache=folder / "probe")

    with _no_bars():
        model = load_model(checkpoint.complete(), getattr(torch, config.dtype)).to(device)
    tensors = {asked: _tensor(corpus, label) for label, (asked, corpus) in held_out.items()}
    return Resident(
        inventory=checkpoint.inventory,
        model=model,
        stats=stats,
        calibration=torch.empty(0, dtype=torch.long) if sliced is None or text is None else _tensor(text, sliced),
        identity={
            "model": checkpoint.content,
            "calibration": None if text is None else text.digest,
            **{f"windows of {label}": corpus.digest for label, (_, corpus) in held_out.items()},
        },
        windows=tensors.__getitem__,
        tokenizer=cache(lambda: load_tokenizer(checkpoint.path, checkpoint.trust_remote_code)),
        probe=cache(probe),
        batch_size=config.batch_size,
        include_path=include_path,
        cache=folder / "scores",
    )


def union_of_needs(config: SweepConfig) -> frozenset[str]:
    """Return the statistics that any trial may read: the needs at every combination of choices and ends of ranges."""
    needs: set[str] = set()
    for step in config.steps:
        ends = [[(name, value) for value in corners(dimension)] for name, dimension in step.space.items()]
        for knobs in itertools.islice(itertools.product(*ends), _COMBINATIONS):
            try:
                method = step.kind.configured({**step.fixed, **dict(knobs)})
                needs |= method.measured
            except MoebenchError:
                continue  # a combination that the method refuses needs nothing
    return frozenset(needs)


def _check(config: SweepConfig, checkpoint: Checkpoint, include_path: Path | None) -> None:
    """Check what can be checked before anything is measured: that the method applies, and that the tasks exist."""
    first = config.steps[0]
    if reason := first.kind.configured(first.fixed).refuse(checkpoint.inventory):
        raise ConfigError(f"method {first.method} does not apply to {config.model}: {reason}")
    if tasks := [task for objective in config.objectives for task in objective.tasks]:
        from bench.evaluation.evaluate import check_tasks

        check_tasks(tasks, include_path)


def _held_out(
    config: SweepConfig, checkpoint: Checkpoint, calibration: Corpus | None, judge: Windows | None
) -> Mapping[str, tuple[Windows, Corpus]]:
    """Return by label what objectives read, once it is known to share no window with ``calibration``.

    Args:
        config: the sweep.
        checkpoint: whose tokenizer reads.
        calibration: text of the statistics.
        judge: windows that keep apart from all others, as those of ``final`` do.
    """
    asked = {label: objective.held_out for label, objective in config.labelled.items()}
    later = {"final.choose": config.final.choose, "final.report": config.final.report, "judge": judge}
    asked |= later
    texts: dict[str, tuple[Windows, Corpus]] = {}
    seen = {} if calibration is None else {"calibration": calibration}
    for label, windows in asked.items():
        if windows is None:
            continue
        final, apart = label in later, Apart()
        others = {other: read for other, read in seen.items() if other == "calibration" or final}
        for read in others.values():
            apart.add(read.windows, read.documents)
        text = _read(windows, checkpoint, config.calibration.bos, Talk.of(config.calibration), apart=apart)
        _check_draw(label, windows, text, texts)
        for other, read in others.items():
            before = set(read.windows)
            if shared := len([window for window in text.windows if window in before]):
                kind = "calibration windows" if other == "calibration" else f"windows of {other}"
                name = label if final else f"objective {label}"
                raise ConfigError(
                    f"{name}: {shared} of {len(text.windows)} held-out windows are also {kind}; give it another seed or corpus"
                )
        seen[label], texts[label] = text, (windows, text)
    return texts


def _check_draw(label: str, asked: Windows, text: Corpus, others: Mapping[str, tuple[Windows, Corpus]]) -> None:
    """Refuse a text that is that of another seed again; files of token ids are replayed whatever the seed."""
    for other, (before, drawn) in others.items():
        if before.seed != asked.seed and drawn.digest == text.digest and not replayed(asked.corpus):
            raise ConfigError(
                f"{label} and {other} ask for seeds {asked.seed} and {before.seed}, and {asked.corpus!r} holds no more "
                "than these windows, so both read the same; name a longer text, or the same seed"
            )


def _calibration(asked: CalibrationConfig, checkpoint: Checkpoint) -> Corpus:
    return _read(asked, checkpoint, asked.bos, Talk.of(asked), asked.answers_only)


def _read(
    asked: CalibrationConfig | Windows,
    checkpoint: Checkpoint,
    bos: Bos,
    talk: Talk,
    answers_only: bool = False,
    apart: Apart | None = None,
) -> Corpus:
    spoken = talk if isinstance(asked, CalibrationConfig) or has_conversations(asked.corpus) else None
    windows = (asked.sequences, asked.length, asked.seed)
    return parse(asked.corpus, checkpoint, *windows, bos, answers_only, apart, spoken)


def _tensor(text: Corpus, label: str) -> Tensor:
    """Return the windows as token ids, shape (N, S)."""
    lengths = {len(window) for window in text.windows}
    if len(lengths) > 1:
        raise ConfigError(f"objective {label}: windows differ in length ({min(lengths)} to {max(lengths)} tokens)")
    return torch.tensor(text.windows, dtype=torch.long)


@contextmanager
def _no_bars() -> Iterator[None]:
    """Keep transformers' progress bars out of the terminal, which shows the sweep's own."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
