"""``calibrate``: statistics of a checkpoint on a corpus."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from bench.calibration.calibrate import calibrate as measure
from bench.calibration.decide import Progress
from bench.checkpoint.checkpoint import Checkpoint
from bench.library.opening import open_checkpoint
from bench.models.device import resolved_device
from bench.settings.stage_settings import CalibrationConfig
from bench.settings.strict import validated
from bench.store.store import Store
from bench.text.corpus import Corpus, parse
from bench.text.template import Talk
from methods.framework.stats import CATALOGUE, Stats


def calibrate(
    checkpoint: str | Path | Checkpoint,
    corpus: str | Corpus = "pocket",
    needs: Iterable[str] | None = None,
    *,
    store: str | Path = "runs",
    progress: Progress | None = None,
    **settings: Any,
) -> Stats:
    """Measure statistics in one pass, or find them in the store.

    Args:
        checkpoint: folder, hub id, pocket model, or an open checkpoint.
        corpus: text file, ``datasets:NAME``, ``pocket[:domain]``, a file of token ids, or a corpus that is read already.
        needs: names of statistics; None for the whole catalogue.
        store: folder whose cache is read and written.
        progress: called after each decoder layer, with layers done and in all.
        settings: further fields of ``CalibrationConfig``: ``sequences``, ``length``, ``seed``, ``bos``, ``answers_only``,
            ``device``, ``sampled_tokens``.

    Raises:
        ConfigError: an unknown setting or statistic (with the closest match), or a corpus that cannot be read.
        StatsError: the corpus does not fit the model, or a statistic is not defined for it.
    """
    opened = open_checkpoint(checkpoint)
    name = corpus.name if isinstance(corpus, Corpus) else corpus
    config = validated({**settings, "corpus": name}, CalibrationConfig, "calibrate")
    if not isinstance(corpus, Corpus):
        how: dict[str, Any] = {"bos": config.bos, "answers_only": config.answers_only, "talk": Talk.of(config)}
        corpus = parse(corpus, opened, config.sequences, config.length, config.seed, **how)
    return measure(
        opened,
        corpus,
        frozenset(CATALOGUE if needs is None else needs),
        cache=Store(Path(store)).cache / "stats",
        device=resolved_device(config.device),
        sampled_tokens=config.sampled_tokens,
        progress=progress,
    )
