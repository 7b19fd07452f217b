"""Small trained Mixture-of-Experts models of an invented language, and the tasks and text to measure them with."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

from bench.pocket.language import DOMAIN_WEIGHTS, DOMAINS, Split, windows
from bench.pocket.task_files import TASKS, write_tasks

__all__ = ["DOMAINS", "POCKET_MODELS", "TASKS", "corpus", "pocket_path", "write_tasks"]

POCKET_MODELS: tuple[str, ...] = ("pocket-mixtral", "pocket-qwen2moe", "pocket-deepseek", "pocket-upcycled")


def pocket_path(name: str) -> Path:
    """Return the folder of a trained model.

    Raises:
        ValueError: if no pocket model has that name.
    """
    if name not in POCKET_MODELS:
        raise ValueError(f"no pocket model is called {name!r}; the names are {', '.join(POCKET_MODELS)}")
    return Path(__file__).parent / "weights" / name


def corpus(
    domains: Sequence[str] = DOMAINS,
    seed: int = 0,
    tokens: int = 16384,
    *,
    length: int = 128,
    split: Split = "calibration",
) -> list[list[int]]:
    """Return windows of token ids of some domains, in the proportions of the training mixture.

    Args:
        domains: names of domains; one alone gives text of that domain only.
        seed: chooses the text within the split.
        tokens: lower bound of the tokens returned; the last window is whole.
        length: tokens a window.
        split: by default text that neither training nor the tasks use, except for the facts, which are the same
            everywhere.

    Raises:
        ValueError: if a domain or the split is unknown, or nothing is asked for.
    """
    unknown = [name for name in domains if name not in DOMAINS]
    if unknown or not domains:
        raise ValueError(f"unknown domains {unknown or list(domains)}; the domains are {', '.join(DOMAINS)}")
    if tokens < 1 or length < 2:
        raise ValueError(f"tokens must be positive and length at least 2, got {tokens} and {length}")
    weights = {name: DOMAIN_WEIGHTS[name] for name in domains}
    stream = windows(random.Random(f"corpus {seed}"), split, weights, length)
    return [next(stream) for _ in range(-(-tokens // length))]
