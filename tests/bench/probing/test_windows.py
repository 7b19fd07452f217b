"""Which tokens a probe runs on."""

from __future__ import annotations

import pytest

from bench.probing.windows import batches, chosen
from bench.text.corpus import Corpus
from methods.framework.errors import ConfigError
from tests.support.tiny import tiny_tokens

RAGGED = Corpus.of([w[:n] for w, n in zip(tiny_tokens(5).tolist(), (24, 7, 24, 1, 7), strict=True)], "ragged")


def test_windows_are_whole_and_evenly_spaced():
    corpus = Corpus.of([[n] * 10 for n in range(10)], "ten")
    assert [window[0] for window in chosen(corpus, 45).windows] == [0, 2, 5, 7]
    assert chosen(corpus, 1000).digest == corpus.digest
    with pytest.raises(ConfigError, match="raise the probe's tokens"):
        chosen(corpus, 9)
    lengths = [[len(window) for group in batch for window in group] for batch in batches(RAGGED, 32)]
    assert lengths == [[24, 24], [7, 7]]
    assert [len(batch) for batch in batches(RAGGED, 1000)] == [2]  # groups of 7 and of 24 tokens
    assert len(batches(RAGGED, 1)) == 4
    with pytest.raises(ConfigError, match="no next token"):
        batches(Corpus.of([[1], [2]]), 2)
