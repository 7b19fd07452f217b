"""The text of a recovery: which windows each step reads.

Letters: N windows, B windows in a step, T tokens in a window.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from bench.checkpoint.checkpoint import Checkpoint
from bench.settings.recovery import RecoverySettings
from bench.text.corpus import Corpus, parse
from methods.framework.errors import ConfigError


def training_text(settings: RecoverySettings, checkpoint: Checkpoint) -> Corpus:
    """Return the windows that ``settings`` ask for, all of one length.

    Raises:
        ConfigError: the text is missing, too short, of another tokenizer, or its windows differ in length.
    """
    corpus = parse(settings.corpus, checkpoint, settings.sequences, settings.length, settings.seed)
    lengths = sorted({len(window) for window in corpus.windows})
    if len(lengths) > 1 or lengths[0] < 2:
        raise ConfigError(
            f"corpus {settings.corpus!r} has windows of {lengths[0]} to {lengths[-1]} tokens; training takes windows of one "
            "length, at least 2 tokens: cut or join them"
        )
    return corpus


def steps_of(settings: RecoverySettings, windows: int) -> int:
    """Return the number of steps: as given, or those of the epochs, the last of them filled up from a further pass."""
    return settings.steps or -(-settings.epochs * windows // settings.batch)


class Windows:
    """Batches by step. Passes over the windows follow each other, each in an order of its own, so every step is full."""

    def __init__(self, corpus: Corpus, settings: RecoverySettings) -> None:
        """Hold the windows of ``corpus`` as one tensor."""
        self._ids_NT = torch.tensor(corpus.windows)
        self._batch, self._seed = settings.batch, settings.seed

    def batch(self, step: int) -> Tensor:
        """Return the token ids of a step, counted from 0, of shape (B, T); they depend on nothing but seed and step."""
        count = len(self._ids_NT)
        places = range(step * self._batch, (step + 1) * self._batch)
        orders = {number: self._order(number) for number in {place // count for place in places}}
        return self._ids_NT[[int(orders[place // count][place % count]) for place in places]]

    def _order(self, number: int) -> np.ndarray:
        return np.random.default_rng((self._seed, number)).permutation(len(self._ids_NT))
