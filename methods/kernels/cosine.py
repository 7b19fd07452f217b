"""Cosines from inner products."""

from __future__ import annotations

import numpy as np

from methods.framework.stats import Array


def cosine(gram: Array) -> Array:
    """Return the cosines of vectors whose inner products are ``gram``, both of shape (E, E).

    A vector of length zero has cosine 0 with every vector. Values lie in [-1, 1] and are symmetric to the last bit.
    """
    gram = (gram + gram.T) / 2.0
    length = np.sqrt(np.maximum(np.diagonal(gram), 0.0))
    product = length[:, None] * length[None, :]
    cosines: Array = np.clip(np.divide(gram, product, out=np.zeros_like(gram), where=product > 0.0), -1.0, 1.0)
    return cosines
