"""Nested brackets of four kinds."""

from __future__ import annotations

import random

from bench.pocket.language.instance import Item, Part, Split, choose, draw
from bench.pocket.language.lexicon import BRACKETS

OPTIONS = 4
PREFIX = 8
DEPTH = 4
LENGTHS = (10, 12, 14, 16)
CLOSER = dict(BRACKETS)


def _sample(rng: random.Random) -> tuple[str, ...]:
    length = rng.choice(LENGTHS)
    word: list[str] = []
    stack: list[str] = []
    while len(word) < length:
        left = length - len(word)
        opens = not stack or (len(stack) < min(DEPTH, left - 1) and rng.random() < 0.55)
        if opens:
            opener, closer = rng.choice(BRACKETS)
            stack.append(closer)
            word.append(opener)
        else:
            word.append(stack.pop())
    return tuple(word)


def _key(word: tuple[str, ...]) -> str:
    return " ".join(word[:PREFIX])


def document(rng: random.Random, split: Split) -> list[Part]:
    """Return one balanced word; its first eight symbols decide its split."""
    word = draw(rng, split, _sample, _key)
    return [*(("", symbol) if symbol not in CLOSER else (symbol, "") for symbol in word), ("", ".")]


def item(rng: random.Random) -> Item:
    """Return an unseen beginning that a closing bracket continues, and the four kinds of closing bracket."""
    word = draw(rng, "test", _sample, _key)
    ends = [index for index in range(PREFIX, len(word)) if word[index] not in CLOSER]
    end = rng.choice(ends)
    return choose(rng, " ".join(word[:end]), word[end], list(CLOSER.values()), options=OPTIONS)
