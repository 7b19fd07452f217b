"""Accuracy of a model on multiple-choice items, without a harness."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from transformers import PreTrainedModel

from bench.pocket.language import DOMAINS, Item, items
from bench.pocket.language.lexicon import PAD, encode, vocabulary

ITEM_SEED = 1


@torch.no_grad()
def accuracy(model: PreTrainedModel, questions: Sequence[Item], batch: int = 256) -> float:
    """Return the share of items whose right choice is the likeliest continuation of the context.

    Args:
        model: a pocket model.
        questions: items with their choices.
        batch: choices that are run at once.
    """
    rows = [
        (index, encode(item.context), encode(choice)) for index, item in enumerate(questions) for choice in item.choices
    ]
    scores: list[list[float]] = [[] for _ in questions]
    for start in range(0, len(rows), batch):
        part = rows[start : start + batch]
        width = max(len(context) + len(choice) for _, context, choice in part)
        pad = vocabulary()[PAD]
        ids = torch.tensor([[*c, *a, *[pad] * (width - len(c) - len(a))] for _, c, a in part])
        logs = model(input_ids=ids, use_cache=False).logits.float().log_softmax(-1)
        picked = logs[:, :-1].gather(-1, ids[:, 1:, None])[..., 0]
        for row, (index, context, choice) in zip(picked, part, strict=True):
            scores[index].append(float(row[len(context) - 1 : len(context) + len(choice) - 1].sum()))
    right = [max(range(len(s)), key=s.__getitem__) == item.answer for s, item in zip(scores, questions, strict=True)]
    return sum(right) / len(right)


def domain_accuracy(model: PreTrainedModel, count: int = 200, seed: int = ITEM_SEED) -> Mapping[str, float]:
    """Return the accuracy on ``count`` items of each domain.

    Args:
        model: a pocket model.
        count: items a domain.
        seed: of the items.
    """
    return {name: accuracy(model, items(name, seed, count)) for name in DOMAINS}
