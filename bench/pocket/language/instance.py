"""A multiple-choice item and the split of instances into training, calibration and test."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal, TypeVar

Split = Literal["train", "calibration", "test"]
SPLITS: tuple[Split, ...] = ("train", "calibration", "test")

Value = TypeVar("Value")

Part = tuple[str, str]
"""Words that chance decides, then words that follow from what stands before them."""


@dataclass(frozen=True)
class Item:
    """One multiple-choice question: the context, its possible continuations and the index of the right one."""

    context: str
    choices: tuple[str, ...]
    answer: int


def split_of(key: str) -> Split:
    """Return the split that an instance belongs to: 80 % train, 10 % calibration, 10 % test, by its hash."""
    bucket = hashlib.blake2b(key.encode(), digest_size=2).digest()[0] % 10
    return "train" if bucket < 8 else "calibration" if bucket == 8 else "test"


def draw(
    rng: random.Random, split: Split, sample: Callable[[random.Random], Value], key: Callable[[Value], str]
) -> Value:
    """Sample until an instance of the wanted split comes.

    Args:
        rng: source of the draws.
        split: the split wanted.
        sample: draws an instance of any split.
        key: text by which an instance belongs to a split.
    """
    while True:
        value = sample(rng)
        if split_of(key(value)) == split:
            return value


def choose(rng: random.Random, context: str, right: str, wrong: Iterable[str], *, options: int) -> Item:
    """Return an item with the right continuation among distinct wrong ones, in random order.

    Args:
        rng: source of the order.
        context: text before the continuation.
        right: the right continuation.
        wrong: candidates, best first; the first ``options - 1`` distinct ones are used.
        options: number of choices.

    Raises:
        ValueError: if there are too few distinct wrong continuations.
    """
    distractors = [text for text in dict.fromkeys(wrong) if text != right][: options - 1]
    if len(distractors) != options - 1:
        raise ValueError(f"{options - 1} wrong continuations are needed for {context!r}, got {distractors}")
    choices = [right, *distractors]
    rng.shuffle(choices)
    return Item(context, tuple(choices), choices.index(right))
