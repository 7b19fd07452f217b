"""Small programs that set variables, change one of them and print them."""

from __future__ import annotations

import random

from bench.pocket.language.instance import Item, Part, Split, choose, draw
from bench.pocket.language.lexicon import DIGITS, VARIABLES

OPTIONS = 4
PRINTS = 3
LARGEST_STEP = 3
Program = tuple[str, dict[str, int], str]


def _sample(rng: random.Random) -> Program:
    """Return the text of a program, the final value of each variable, and the variable that was changed."""
    names = rng.sample(VARIABLES, 2)
    values = {name: rng.randrange(10) for name in names}
    lines = [f"set {name} {value} ;" for name, value in values.items()]
    changed = rng.choice(names)
    steps = range(-LARGEST_STEP, LARGEST_STEP + 1)
    step = rng.choice([step for step in steps if step and 0 <= values[changed] + step < 10])
    values[changed] += step
    lines.append(f"{'add' if step > 0 else 'take'} {changed} {abs(step)} ;")
    return " ".join(lines), values, changed


def _key(program: Program) -> str:
    return program[0]


def document(rng: random.Random, split: Split) -> list[Part]:
    """Return a program that prints its variables several times."""
    text, values, _ = draw(rng, split, _sample, _key)
    asked = rng.choices(sorted(values), k=PRINTS)
    return [(text, ""), *((f"print {name}", f"{values[name]} .") for name in asked)]


def item(rng: random.Random) -> Item:
    """Return an unseen program that prints one variable, and four digits, two of the program among them."""
    text, values, changed = draw(rng, "test", _sample, _key)
    name = rng.choice([changed, *values])
    right = values[name]
    told = {word for word in text.split() if word in DIGITS} - {str(right)}
    near = {str(right + step) for step in (-1, 1) if 0 <= right + step < 10}
    wrong = [*rng.sample(sorted(told), min(len(told), 2)), *rng.sample(sorted(near), len(near))]
    return choose(rng, f"{text} print {name}", str(right), [*wrong, *DIGITS], options=OPTIONS)
