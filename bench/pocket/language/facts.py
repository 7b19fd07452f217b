"""Facts about people and places, memorised in training and asked again in the same forms."""

from __future__ import annotations

import functools
import random
from dataclasses import dataclass

from bench.pocket.language.instance import Item, Part, Split, choose
from bench.pocket.language.lexicon import FOODS, JOBS, LEXICON_SEED, PETS, WARES, invented_words

OPTIONS = 4

FORMS: dict[str, tuple[str, str]] = {
    "home": ("{} lives in", "the home of {} is"),
    "job": ("{} works as", "the job of {} is"),
    "pet": ("{} keeps", "the pet of {} is"),
    "food": ("{} eats", "the food of {} is"),
    "land": ("{} lies in", "the land of {} is"),
    "river": ("{} stands on", "the river of {} is"),
    "ware": ("{} sells", "the ware of {} is"),
}


@dataclass(frozen=True)
class Fact:
    """The value of one attribute of a person or a place."""

    name: str
    attribute: str
    value: str


def values_of(attribute: str) -> tuple[str, ...]:
    """Return the values that an attribute can take."""
    words = invented_words()
    return {
        "home": words["city"], "job": JOBS, "pet": PETS, "food": FOODS,
        "land": words["land"], "river": words["river"], "ware": WARES,
    }[attribute]  # fmt: skip


@functools.cache
def facts_by_name() -> dict[str, tuple[Fact, ...]]:
    """Return the whole world: every value of an attribute is held equally often, so that no value is a safe guess.

    Every first name goes with every last name, so that neither alone tells anything: a fact must be remembered for the
    pair.
    """
    rng = random.Random(LEXICON_SEED)
    words = invented_words()
    people = [f"{first} {last}" for first in words["first"] for last in words["last"]]
    world: dict[str, list[Fact]] = {}
    for names, attributes in ((people, ("home", "job", "pet", "food")), (words["city"], ("land", "river", "ware"))):
        for attribute in attributes:
            values = values_of(attribute)
            assigned = [values[index % len(values)] for index in range(len(names))]
            rng.shuffle(assigned)
            for name, value in zip(names, assigned, strict=True):
                world.setdefault(name, []).append(Fact(name, attribute, value))
    return {name: tuple(facts) for name, facts in world.items()}


@functools.cache
def all_facts() -> tuple[Fact, ...]:
    """Return every fact of the world."""
    return tuple(fact for facts in facts_by_name().values() for fact in facts)


def document(rng: random.Random, split: Split) -> list[Part]:
    """Return two statements; the facts are the same in every split, since knowledge is what this domain measures."""
    facts = rng.sample(all_facts(), 2)
    return [(rng.choice(FORMS[fact.attribute]).format(fact.name), f"{fact.value} .") for fact in facts]


@functools.cache
def _namesakes(fact: Fact) -> tuple[str, ...]:
    """Return the values that people with the same first or the same last name hold."""
    names = set(fact.name.split())
    return tuple(
        other.value
        for other in all_facts()
        if other.attribute == fact.attribute and other.name != fact.name and names & set(other.name.split())
    )


def item(rng: random.Random) -> Item:
    """Return a question about one fact with four values of the same attribute, those of namesakes first."""
    fact = rng.choice(all_facts())
    near = list(_namesakes(fact))
    rng.shuffle(near)
    rest = list(values_of(fact.attribute))
    rng.shuffle(rest)
    return choose(rng, rng.choice(FORMS[fact.attribute]).format(fact.name), fact.value, [*near, *rest], options=OPTIONS)
