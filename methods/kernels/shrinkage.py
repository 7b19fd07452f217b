"""Second moments of the inputs of an expert that saw few tokens, drawn towards those of all experts of its layer.

Shape letter: X inputs of the matrix.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

ENOUGH = 0.25
"""Tokens for each input from which on an expert's own Gram matrix is used as it is."""


def shrunk(gram_XX: Tensor, tokens: float, pooled_XX: Tensor) -> Tensor | None:
    """Return w G + (1 - w) P with w = min(1, n / (X / 4)); None for an expert without tokens, which is treated without data.

    Args:
        gram_XX: G, mean products of the inputs over the expert's tokens; returned as it is where those are enough.
        tokens: n, tokens routed to the expert.
        pooled_XX: P, the mean over all pairs of a token and an expert that it is routed to (see ``pooled``).

    *Source*: none; the kernels that read it are published for one matrix that sees every token. A Gram matrix of n tokens has
    no more than n directions, so that with few of them most weights would seem not to matter.
    """
    if tokens <= 0:
        return None
    own = tokens / (ENOUGH * len(gram_XX))
    return gram_XX if own >= 1.0 else own * gram_XX + (1.0 - own) * pooled_XX


def pooled(means: Sequence[Tensor], tokens: Sequence[float]) -> Tensor | None:
    """Return the mean over all pairs of a token and an expert, sum_j n_j m_j / sum_j n_j; None where there is no token.

    Args:
        means: m_j, means over the tokens of each expert, of any one shape; each may be read on access, and is read once, unless
            the expert saw no token.
        tokens: n_j, tokens routed to each expert.
    """
    total = float(sum(tokens))
    mean: Tensor | None = None
    for place, count in enumerate(tokens):
        if count > 0:
            part = means[place] * (float(count) / total)
            mean = part if mean is None else mean.add_(part)
    return mean
