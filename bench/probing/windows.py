"""Which tokens a probe runs on: whole windows of a corpus, evenly spaced."""

from __future__ import annotations

from collections.abc import Iterator

from bench.text.corpus import Corpus
from methods.framework.errors import ConfigError


def chosen(corpus: Corpus, tokens: int) -> Corpus:
    """Return as many evenly spaced windows of ``corpus`` as together hold at most ``tokens`` tokens.

    Raises:
        ConfigError: not one window is so short.
    """
    lengths = [len(window) for window in corpus.windows]
    for count in range(len(lengths), 0, -1):
        picked = [index * len(lengths) // count for index in range(count)]
        if sum(lengths[index] for index in picked) <= tokens:
            return Corpus.of([corpus.windows[index] for index in picked], corpus.name)
    raise ConfigError(
        f"the first window of corpus {corpus.name} has {lengths[0]} tokens, and the probe runs on whole windows of at "
        f"most {tokens} tokens together; raise the probe's tokens or cut shorter windows"
    )


def batches(corpus: Corpus, tokens: int) -> list[list[list[tuple[int, ...]]]]:
    """Return batches of about ``tokens`` tokens, each as groups of windows of one length.

    A batch takes windows from all over the corpus, so that a corpus of several parts is mixed in each. Windows of one token
    predict nothing and are left out.

    Raises:
        ConfigError: no window has two tokens.
    """
    windows = [window for window in corpus.windows if len(window) > 1]
    if not windows:
        raise ConfigError(
            f"the windows of corpus {corpus.name} have one token each, so there is no next token to predict"
        )
    count = min(len(windows), -(-sum(map(len, windows)) // tokens))
    return [list(_by_length(windows[first::count])) for first in range(count)]


def _by_length(windows: list[tuple[int, ...]]) -> Iterator[list[tuple[int, ...]]]:
    for length in sorted({len(window) for window in windows}):
        yield [window for window in windows if len(window) == length]
