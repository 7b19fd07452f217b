"""Versions of installed libraries, for records and for the keys of what they computed."""

from __future__ import annotations

from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version

COMPUTING = ("compressed-tensors", "lm_eval", "numpy", "scipy", "tokenizers", "torch", "transformers")
"""Distributions whose update may change an answer."""


def versions(*more: str) -> dict[str, str]:
    """Return the versions of the libraries that compute, and of the distributions ``more`` that are installed."""
    return installed(sorted({*COMPUTING, *more}))


def installed(names: Iterable[str]) -> dict[str, str]:
    """Return the versions of those distributions among ``names`` that are installed, in this order."""
    return {name: found for name in names if (found := _version(name)) is not None}


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
