"""A small language of eight domains, written from a seed."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol

from bench.pocket.language import (
    agreement,
    arithmetic,
    brackets,
    facts,
    programs,
    sequences,
    stories,
    translation,
)
from bench.pocket.language.instance import SPLITS, Item, Part, Split
from bench.pocket.language.lexicon import BOUNDARY, encode, vocabulary

__all__ = ["DOMAINS", "DOMAIN_WEIGHTS", "Item", "Split", "documents", "items", "marked_windows", "windows"]


class Domain(Protocol):
    """What the module of a domain offers."""

    OPTIONS: int

    def document(self, rng: random.Random, split: Split) -> list[Part]:
        """Return a short text of the domain, in parts."""

    def item(self, rng: random.Random) -> Item:
        """Return a multiple-choice question of the domain."""


_MODULES: dict[str, Domain] = {
    "facts": facts,
    "arithmetic": arithmetic,
    "agreement": agreement,
    "translation": translation,
    "sequences": sequences,
    "brackets": brackets,
    "stories": stories,
    "programs": programs,
}
DOMAINS: tuple[str, ...] = tuple(_MODULES)

DOMAIN_WEIGHTS: Mapping[str, float] = {
    "facts": 0.26,
    "arithmetic": 0.21,
    "agreement": 0.04,
    "translation": 0.09,
    "sequences": 0.06,
    "brackets": 0.06,
    "stories": 0.13,
    "programs": 0.15,
}
"""Share of the documents of the training mixture that each domain writes."""

ATTEMPTS = 50


def domain(name: str) -> Domain:
    """Return the module of a domain.

    Raises:
        ValueError: if the language has no such domain.
    """
    if name not in _MODULES:
        raise ValueError(f"the language has no domain {name!r}; the domains are {', '.join(DOMAINS)}")
    return _MODULES[name]


def documents(rng: random.Random, split: Split, weights: Mapping[str, float]) -> Iterator[list[Part]]:
    """Write documents without end, each of a domain drawn by weight.

    Args:
        rng: source of the draws.
        split: ``train`` or ``test``.
        weights: relative frequency of each domain by name.
    """
    if split not in SPLITS:
        raise ValueError(f"no split is called {split!r}; the splits are {', '.join(SPLITS)}")
    modules = [domain(name) for name in weights]
    shares = list(weights.values())
    while True:
        yield rng.choices(modules, shares)[0].document(rng, split)


def marked_windows(
    rng: random.Random, split: Split, weights: Mapping[str, float], length: int
) -> Iterator[tuple[list[int], list[bool]]]:
    """Pack documents into windows of exactly ``length`` token ids, with a mark on those that can be foretold.

    A document ends with the boundary token; every second window also opens with one, so that a model reads texts with
    and without it. The last document of a window is cut.

    Args:
        rng: source of the draws.
        split: ``train`` or ``test``.
        weights: relative frequency of each domain by name.
        length: tokens in a window.
    """
    boundary = vocabulary()[BOUNDARY]
    stream = documents(rng, split, weights)
    while True:
        ids: list[int] = [boundary] if rng.random() < 0.5 else []
        marks = [False] * len(ids)
        while len(ids) < length:
            for chance, certain in [*next(stream), ("", BOUNDARY)]:
                for words, mark in ((chance, False), (certain, True)):
                    found = encode(words)
                    ids += found
                    marks += [mark] * len(found)
        yield ids[:length], marks[:length]


def windows(rng: random.Random, split: Split, weights: Mapping[str, float], length: int) -> Iterator[list[int]]:
    """Pack documents into windows of exactly ``length`` token ids.

    Args:
        rng: source of the draws.
        split: ``train`` or ``test``.
        weights: relative frequency of each domain by name.
        length: tokens in a window.
    """
    return (ids for ids, _ in marked_windows(rng, split, weights, length))


def items(name: str, seed: int, count: int) -> Sequence[Item]:
    """Return ``count`` different multiple-choice items of a domain.

    Args:
        name: of the domain.
        seed: of the draws.
        count: items.
    """
    rng = random.Random(f"items {name} {seed}")
    found: dict[str, Item] = {}
    for _ in range(ATTEMPTS * count):
        item = domain(name).item(rng)
        found.setdefault(item.context, item)
        if len(found) == count:
            return list(found.values())
    raise ValueError(f"{name} has no {count} different items, only about {len(found)}; ask for fewer")
