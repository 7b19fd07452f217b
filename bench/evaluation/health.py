"""Whether written texts are sound: loops, missing ends, lengths, and how many of their parts differ.

A model that is badly compressed may still answer a few questions right, while its texts turn in circles or never end. Each text
is one item, so two models are compared text by text.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bench.evaluation.items import Items, standard_error
from bench.evaluation.scores import item_id
from bench.records.record import Score
from bench.store.store import digest_of

LOOP_TOKENS, LOOP_TURNS = 12, 3
"""Least tokens, and least repetitions, of a part at the end of a text that make a loop."""
PART = 3
"""Tokens of the parts of a text that are compared."""
METRICS: Mapping[str, bool] = {"loops": False, "unended": False, "length": False, f"distinct_{PART}": True}
"""Names, and whether more is better; of lengths neither is, and less is cheaper."""


@dataclass(frozen=True)
class Written:
    """One text that a model wrote.

    Args:
        tokens: its tokens, without those that end it or fill it up.
        ended: whether it came to an end before the most tokens were written.
    """

    tokens: tuple[int, ...]
    ended: bool

    @property
    def values(self) -> dict[str, float]:
        """The value of each metric."""
        return {
            "loops": float(loops(self.tokens)),
            "unended": float(not self.ended),
            "length": float(len(self.tokens)),
            f"distinct_{PART}": distinct(self.tokens),
        }


def loops(tokens: Sequence[int]) -> bool:
    """Return whether a text ends with one part at least ``LOOP_TURNS`` times in a row, over at least ``LOOP_TOKENS`` tokens."""
    count = len(tokens)
    for period in range(1, count // LOOP_TURNS + 1):
        span = max(LOOP_TURNS * period, LOOP_TOKENS)
        if span <= count and tokens[count - span + period :] == tokens[count - span : count - period]:
            return True
    return False


def distinct(tokens: Sequence[int]) -> float:
    """Return the share of different ones among all successive parts of ``PART`` tokens; 1 for a text without any."""
    parts = [tuple(tokens[start : start + PART]) for start in range(len(tokens) - PART + 1)]
    return len(set(parts)) / len(parts) if parts else 1.0


def health_scores(
    name: str,
    samples: Sequence[Mapping[str, Any]],
    written: Mapping[str, Sequence[Written]],
    version: str,
    digest: str,
) -> tuple[list[Score], list[Items]]:
    """Return the scores and items of the health of a task's texts; none where a text is not known.

    Args:
        name: of the task.
        samples: what lm-eval tells of each item; of several filters the first counts.
        written: texts by their prompts.
        version: of the task.
        digest: of its definition, items and settings.
    """
    first = [sample for sample in samples if sample["filter"] == samples[0]["filter"]]
    prompts = [str(sample["arguments"][0][0]) for sample in first]
    if not first or any(prompt not in written for prompt in prompts):
        return [], []
    values = [written[prompt][0].values for prompt in prompts]
    ids = tuple(map(item_id, first))
    scores, kept = [], []
    for metric, higher in METRICS.items():
        column = tuple(one[metric] for one in values)
        items = Items(name, metric, "none", "mean", ids, column, (1.0,) * len(column))
        kept.append(items)
        scores.append(
            Score(
                task=name,
                metric=metric,
                value=sum(column) / len(column),
                stderr=standard_error(items),
                n=len(column),
                higher_is_better=higher,
                version=version,
                digest=digest_of([digest, metric]),
            )
        )
    return scores, kept
