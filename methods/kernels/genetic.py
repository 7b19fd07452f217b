"""Genetic search over sets of experts to remove.

Shape letters: C candidates, E routed experts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from methods.kernels.gate_change import Booleans, Indices
from methods.kernels.neighbours import Losses
from methods.kernels.subset_search import Found, ranking

ATTEMPTS = 8
"""Children that are drawn from two parents before one is made distinct by further mutations."""


@dataclass(frozen=True, slots=True)
class Bred:
    """Result of a genetic search.

    Args:
        best: the best distinct sets that were seen, the best first.
        history: least loss of the population at first and after each generation.
        population: sets of the last generation, (C, E), in the caller's labels.
        evaluated: distinct sets whose loss was computed.
    """

    best: list[Found]
    history: list[float]
    population: Booleans
    evaluated: int


@dataclass(frozen=True, slots=True)
class Breeding:
    """Settings of a genetic search.

    Args:
        population: sets alive at a time.
        iterations: generations.
        elite: share of the population that survives and has children.
        mutation: probability that a child has one member exchanged.
    """

    population: int = 100
    iterations: int = 50
    elite: float = 0.2
    mutation: float = 0.3


def breed(
    losses: Losses,
    order_E: Indices,
    removed: int,
    groups: int,
    settings: Breeding,
    rng: np.random.Generator,
    count: int = 1,
    seeds: Sequence[Found] = (),
) -> Bred:
    """Return the ``count`` best sets that a genetic search sees.

    The fittest survive. A child is drawn from the union of two parents' sets, and may have one member exchanged for an expert
    outside it. No two members of a population are equal; losses are remembered.

    Args:
        losses: loss of candidate sets.
        order_E: experts in an order that does not depend on their labels, within each group; all draws follow it, so that
            relabelling the experts relabels the result.
        removed: experts to remove, the same number in each group.
        groups: equal, consecutive groups of experts.
        settings: sizes and probabilities.
        rng: source of all draws.
        count: sets to return.
        seeds: sets that the first population contains.

    Returns:
        The best sets and how they were found.
    """
    experts, each = len(order_E), removed // groups
    place_E = np.argsort(order_E)
    known: dict[bytes, float] = {}

    def evaluate(members_CE: Booleans) -> list[float]:
        new = [row for row in members_CE if row.tobytes() not in known]
        if new:
            labelled_CE = np.zeros((len(new), experts), dtype=bool)
            labelled_CE[:, order_E] = np.array(new)
            known.update(zip((row.tobytes() for row in new), losses(labelled_CE).tolist(), strict=True))
        return [known[row.tobytes()] for row in members_CE]

    population = _Members(experts, groups, each, rng)
    for seed in seeds:
        population.add(_row(experts, place_E[list(seed.removed)]))
    while len(population.rows) < settings.population:
        population.add(population.random())
    members_CE = np.array(population.rows)
    fitness = np.array(evaluate(members_CE))
    history = [float(fitness.min())]
    parents = min(max(2, round(settings.elite * settings.population)), settings.population - 1)
    for _ in range(settings.iterations):
        elite_CE = members_CE[ranking(fitness)[:parents]]
        population = _Members(experts, groups, each, rng, elite_CE)
        while len(population.rows) < settings.population:
            population.add_child(elite_CE, settings.mutation)
        members_CE = np.array(population.rows)
        fitness = np.array(evaluate(members_CE))
        history.append(float(fitness.min()))
    values = np.array(list(known.values()))
    sets = [np.frombuffer(key, dtype=bool) for key in known]
    best = [Found(tuple(sorted(int(e) for e in order_E[sets[i]])), float(values[i])) for i in ranking(values)[:count]]
    return Bred(best, history, members_CE[:, place_E], len(known))


def _row(experts: int, places: Indices) -> Booleans:
    row = np.zeros(experts, dtype=bool)
    row[places] = True
    return row


class _Members:
    """A population under construction: distinct sets of places, with the same number in each group."""

    def __init__(
        self, experts: int, groups: int, each: int, rng: np.random.Generator, rows: Sequence[Booleans] | Booleans = ()
    ) -> None:
        self._experts, self._groups, self._each, self._rng = experts, groups, each, rng
        self.rows = list(rows)
        self._seen = {row.tobytes() for row in rows}

    def add(self, row: Booleans) -> bool:
        """Add ``row`` unless it is there; return whether it was added."""
        if row.tobytes() in self._seen:
            return False
        self._seen.add(row.tobytes())
        self.rows.append(row)
        return True

    def random(self) -> Booleans:
        """Return a set drawn uniformly."""
        return self._sample(np.ones(self._experts, dtype=bool))

    def add_child(self, elite_CE: Booleans, mutation: float) -> None:
        """Add a child of two of ``elite_CE``; one that exists already is drawn anew, and at last mutated until it differs."""
        for _ in range(ATTEMPTS):
            mother, father = self._rng.choice(len(elite_CE), 2, replace=False)
            child = self._sample(elite_CE[mother] | elite_CE[father])
            if self._rng.random() < mutation:
                self._mutate(child)
            if self.add(child):
                return
        while not self.add(child.copy()):
            self._mutate(child)

    def _sample(self, pool_E: Booleans) -> Booleans:
        size, row = self._experts // self._groups, np.zeros(self._experts, dtype=bool)
        for start in range(0, self._experts, size):
            places = self._rng.choice(pool_E[start : start + size].nonzero()[0], self._each, replace=False)
            row[start + places] = True
        return row

    def _mutate(self, row: Booleans) -> None:
        """Exchange one member for a non-member of the same group."""
        size = self._experts // self._groups
        group = int(self._rng.integers(self._groups)) * size
        part = row[group : group + size]
        member, other = (self._one(places) for places in (part.nonzero()[0], (~part).nonzero()[0]))
        part[member], part[other] = False, True

    def _one(self, places: Indices) -> int:
        """Return one of ``places``; the same as ``choice`` draws, in a fifth of the time."""
        return int(places[self._rng.integers(0, len(places))])
