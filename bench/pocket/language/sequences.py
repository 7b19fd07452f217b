"""Copying and sorting of sequences of letters."""

from __future__ import annotations

import random

from bench.pocket.language.instance import Item, Part, Split, choose, draw
from bench.pocket.language.lexicon import LETTERS

OPTIONS = 4
Task = tuple[str, tuple[str, ...]]


def _sample(rng: random.Random) -> Task:
    return rng.choice(("copy", "sort")), tuple(rng.sample(LETTERS, rng.choice((4, 5))))


def question(task: Task) -> str:
    """Return a task up to the sign after which its result stands."""
    operation, letters = task
    return f"{operation} {' '.join(letters)} ="


def result(task: Task) -> list[str]:
    """Return the letters that a task asks for."""
    operation, letters = task
    return sorted(letters) if operation == "sort" else list(letters)


def document(rng: random.Random, split: Split) -> list[Part]:
    """Return one task and its result."""
    task = draw(rng, split, _sample, question)
    return [(question(task), f"{' '.join(result(task))} .")]


def item(rng: random.Random) -> Item:
    """Return an unseen task, its result, and three sequences in which two letters are exchanged."""
    task = draw(rng, "test", _sample, question)
    right = result(task)
    pairs = [(low, high) for high in range(len(right)) for low in range(high)]
    wrong = []
    for low, high in rng.sample(pairs, OPTIONS - 1):
        exchanged = list(right)
        exchanged[low], exchanged[high] = exchanged[high], exchanged[low]
        wrong.append(" ".join(exchanged))
    return choose(rng, question(task), " ".join(right), wrong, options=OPTIONS)
