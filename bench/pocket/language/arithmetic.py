"""Addition and subtraction of numbers of two digits, written digit by digit."""

from __future__ import annotations

import random

from bench.pocket.language.instance import Item, Part, Split, choose, draw

OPTIONS = 4
Problem = tuple[int, str, int]


def digits(number: int) -> str:
    """Return the two digits of a number below 100 as two words."""
    return f"{number // 10} {number % 10}"


def result(problem: Problem) -> int:
    """Return the value of a problem."""
    left, sign, right = problem
    return left + right if sign == "+" else left - right


def _sample(rng: random.Random) -> Problem:
    larger, smaller = sorted((rng.randrange(100), rng.randrange(100)), reverse=True)
    if rng.random() < 0.5:
        return larger, "-", smaller
    first, second = larger - smaller, smaller
    return (first, "+", second) if rng.random() < 0.5 else (second, "+", first)


def question(problem: Problem) -> str:
    """Return a problem up to its equals sign."""
    left, sign, right = problem
    return f"{digits(left)} {sign} {digits(right)} ="


def _problem(rng: random.Random, split: Split) -> Problem:
    return draw(rng, split, _sample, question)


def document(rng: random.Random, split: Split) -> list[Part]:
    """Return two solved problems."""
    problems = [_problem(rng, split) for _ in range(2)]
    return [(question(problem), f"{digits(result(problem))} .") for problem in problems]


def item(rng: random.Random) -> Item:
    """Return an unseen problem with four results that are off by one, by ten, or by a lost carry."""
    problem = _problem(rng, "test")
    right = result(problem)
    near = [right + step for step in (1, -1, 10, -10, 9, -9, 11, -11) if 0 <= right + step < 100]
    rng.shuffle(near)
    return choose(rng, question(problem), digits(right), map(digits, near), options=OPTIONS)
