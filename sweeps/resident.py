"""What all trials of a sweep share: one model in memory, its statistics, and the windows that losses are taken on."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from bench.store.store import Store
from methods.framework.errors import ConfigError, MoebenchError
from methods.framework.inventory import Inventory
from methods.framework.probe import Probe
from methods.framework.stats import CATALOGUE, Stats
from methods.registry import method_class
from sweeps.search_space import corners
from sweeps.sweep_config import DivergenceObjective, LossObjective, SweepConfig, TaskObjective, Windows

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from bench.checkpoint.checkpoint import Checkpoint
    from bench.records.record import Score
    from sweeps.candidate import Candidate

_COMBINATIONS = 4096
"""Combinations of knobs that are asked for what they need."""


@dataclass(frozen=True)
class Resident:
    """A model under search.

    Args:
        inventory: of the source.
        model: the uncompressed model, on its device.
        stats: statistics for every trial.
        calibration: windows that the statistics were measured on, shape (N, S).
        identity: digests of the model and of the windows; a study is bound to them.
        windows: returns held-out windows, shape (N, S).
        tokenizer: loads the tokenizer, which only task objectives need.
        probe: makes the probe of the model, which only some methods ask for.
        cache: folder of finished task scores, None for none.
    """

    inventory: Inventory
    model: PreTrainedModel
    stats: Stats
    calibration: Tensor
    identity: Mapping[str, Any]
    windows: Callable[[Windows], Tensor]
    tokenizer: Callable[[], Any]
    probe: Callable[[], Probe]
    cache: Path | None = None

    def scores(self, task: str, limit: int | None, config: SweepConfig, candidate: Candidate) -> Sequence[Score]:
        """Return lm-eval's scores of the candidate on ``task``."""
        from bench.evaluation.evaluate import evaluate

        digest = f"{self.identity['model']}+{candidate.plan.digest}+in-memory"
        include_path = None if config.include_path is None else Path(config.include_path)
        return evaluate(
            candidate.model,
            self.tokenizer(),
            [task],
            include_path=include_path,
            limit=limit,
            batch_size=config.batch_size,
            model_digest=digest,
            cache=self.cache,
        ).scores


def open_resident(config: SweepConfig, store: Path) -> Resident:
    """Load the model, measure (or recall) what the trials need, and read the held-out windows.

    Raises:
        MoebenchError: the model, a corpus or a task cannot be read.
        ConfigError: held-out windows that the statistics are measured on.
    """
    from functools import cache

    from bench.calibration.calibrate import calibrate
    from bench.checkpoint.checkpoint import Checkpoint
    from bench.models.device import resolved_device
    from bench.models.load import load_model, load_tokenizer
    from bench.text.corpus import parse

    checkpoint = Checkpoint.open(config.model, config.revision)
    if reason := method_class(config.method).configured(config.fixed).refuse(checkpoint.inventory):
        raise ConfigError(f"method {config.method} does not apply to {config.model}: {reason}")
    if tasks := [objective.task for objective in config.objectives if isinstance(objective, TaskObjective)]:
        from bench.evaluation.evaluate import check_tasks

        check_tasks(tasks, None if config.include_path is None else Path(config.include_path))
    needs = union_of_needs(config)
    settings = config.calibration
    of_tokens = any(CATALOGUE[name].cost != "weights" for name in needs)
    wants_slice = any(isinstance(objective, DivergenceObjective) for objective in config.objectives)
    corpus = None
    if of_tokens or wants_slice:
        corpus = parse(settings.corpus, checkpoint, settings.sequences, settings.length, settings.seed)
    device = resolved_device(config.device)
    cache_folder = Store(store).cache
    stats = calibrate(
        checkpoint,
        corpus if of_tokens else None,
        needs,
        cache=cache_folder / "stats",
        device=device,
        sampled_tokens=settings.sampled_tokens,
    )
    seen = set() if corpus is None else {tuple(window) for window in corpus.windows}
    held_out: dict[Windows, Tensor] = {}
    identity: dict[str, Any] = {"model": checkpoint.content, "calibration": None if corpus is None else corpus.digest}
    for label, objective in zip(config.labels, config.objectives, strict=True):
        if isinstance(objective, LossObjective):
            asked = objective.windows
            text = parse(asked.corpus, checkpoint, asked.sequences, asked.length, asked.seed)
            if shared := sum(tuple(window) in seen for window in text.windows):
                raise ConfigError(
                    f"objective {label}: {shared} of {len(text.windows)} held-out windows are also calibration "
                    "windows; give it another seed or corpus"
                )
            held_out[asked] = _tensor(text.windows, label)
            identity[f"windows of {label}"] = text.digest
    with _no_bars():
        model = load_model(checkpoint.path, getattr(torch, config.dtype)).to(device)
    return Resident(
        inventory=checkpoint.inventory,
        model=model,
        stats=stats,
        calibration=_tensor(corpus.windows if corpus is not None and wants_slice else [], "kl"),
        identity=identity,
        windows=held_out.__getitem__,
        tokenizer=cache(lambda: load_tokenizer(checkpoint.path)),
        probe=cache(lambda: _probe(checkpoint, config, cache_folder, device)),
        cache=cache_folder / "scores",
    )


def _probe(checkpoint: Checkpoint, config: SweepConfig, cache_folder: Path, device: str) -> Probe:
    """Return a probe on the calibration windows."""
    from bench.probing.model_probe import ModelProbe
    from bench.text.corpus import parse

    settings = config.calibration
    corpus = parse(settings.corpus, checkpoint, settings.sequences, settings.length, settings.seed)
    return ModelProbe(checkpoint, corpus, tokens=settings.sampled_tokens, device=device, cache=cache_folder / "probe")


def union_of_needs(config: SweepConfig) -> frozenset[str]:
    """Return the statistics that any trial may read: the needs at every combination of choices and ends of ranges."""
    kind = method_class(config.method)
    ends = [[(name, value) for value in corners(dimension)] for name, dimension in config.space.items()]
    needs: set[str] = set()
    for knobs in itertools.islice(itertools.product(*ends), _COMBINATIONS):
        try:
            method = kind.configured({**config.fixed, **dict(knobs)})
            needs |= method.measured
        except MoebenchError:
            continue  # a combination that the method refuses needs nothing
    return frozenset(needs)


def _tensor(windows: Sequence[Sequence[int]], label: str) -> Tensor:
    lengths = {len(window) for window in windows}
    if len(lengths) > 1:
        raise ConfigError(f"objective {label}: windows differ in length ({min(lengths)} to {max(lengths)} tokens)")
    return torch.tensor([list(window) for window in windows], dtype=torch.long)


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
