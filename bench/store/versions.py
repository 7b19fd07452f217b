"""Versions of the libraries that compute, for the keys of what they computed."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

COMPUTING = ("compressed-tensors", "lm_eval", "numpy", "scipy", "tokenizers", "torch", "transformers")
"""Distributions whose update may change an answer."""


def versions(*more: str) -> dict[str, str]:
    """Return the versions of the libraries that compute, and of the distributions ``more`` that are installed."""
    return {name: found for name in sorted({*COMPUTING, *more}) if (found := _version(name)) is not None}


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
