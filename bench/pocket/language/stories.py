"""Stories of people and things that are in a room, and may be in another one later."""

from __future__ import annotations

import random

from bench.pocket.language.instance import Item, Part, Split, choose, draw
from bench.pocket.language.lexicon import ACTORS, OBJECTS, ROOMS

OPTIONS = 4
QUESTIONS = 4
Story = tuple[str, dict[str, str]]


def _sample(rng: random.Random) -> Story:
    """Return the text of a story and the last room of each person and thing in it."""
    entities = [*rng.sample(ACTORS, 2), rng.choice(OBJECTS)]
    order = rng.sample(entities, len(entities))
    if rng.random() < 0.5:
        order.append(rng.choice(entities))
    rooms: dict[str, str] = {}
    lines = []
    for entity in order:
        rooms[entity] = rng.choice([room for room in ROOMS if room not in rooms.values()])
        lines.append(f"{'goes' if entity in ACTORS else 'put'} {entity} {rooms[entity]} .")
    return " ".join(lines), rooms


def _key(story: Story) -> str:
    return str(sorted(story[1].items()))  # the end decides the split, since a longer story may contain a shorter one


def document(rng: random.Random, split: Split) -> list[Part]:
    """Return a story and questions about the persons and things in it, with their answers."""
    text, rooms = draw(rng, split, _sample, _key)
    asked = rng.choices(sorted(rooms), k=QUESTIONS)  # with repetition, so that no answer is what others leave over
    return [(text, ""), *((f"where is {name}", f"{rooms[name]} .") for name in asked)]


def item(rng: random.Random) -> Item:
    """Return an unseen story with one question and four rooms, those of the story among them."""
    text, rooms = draw(rng, "test", _sample, _key)
    name = rng.choice(sorted(rooms))
    told = [room for room in ROOMS if room in text.split()]
    untold = [room for room in ROOMS if room not in told]
    rng.shuffle(told)
    rng.shuffle(untold)
    return choose(rng, f"{text} where is {name}", rooms[name], [*told, *untold], options=OPTIONS)
