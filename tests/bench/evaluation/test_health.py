"""Loops, ends, lengths and distinct parts of written texts, and texts told apart by their prompts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from bench.evaluation.evaluate import evaluate
from bench.evaluation.health import METRICS, Written, distinct, health_scores, loops
from bench.evaluation.paired import compare
from tests.bench.evaluation.test_evaluate import _tokenizer, write_local_tasks
from tests.support.tiny import tiny_model


@pytest.mark.parametrize(
    ("tokens", "looped"),
    [
        ((7,) * 12, True),
        ((7,) * 11, False),
        ((1, 2, 9, *(3, 4, 5, 6) * 3), True),
        ((*(3, 4, 5, 6) * 3, 1), False),
        ((*(3, 4, 5, 6) * 2, 3, 4, 5), False),
        ((9, *range(5), *range(5), *range(5)), True),
        ((9, *range(5), *range(5), 0, 1, 2, 3, 5), False),
        ((), False),
    ],
)
def test_a_loop_is_a_part_three_times_at_the_end(tokens: tuple[int, ...], looped: bool) -> None:
    assert loops(tokens) is looped


def test_distinct_parts_are_counted() -> None:
    assert distinct((1, 2, 3, 1, 2, 3, 1)) == pytest.approx(3 / 5)
    assert distinct((1, 2)) == 1.0 and distinct((1, 1, 1, 1)) == 0.5


def _samples(prompts: list[str]) -> list[dict[str, Any]]:
    digests = {"doc_hash": "d" * 12, "prompt_hash": "p" * 12, "target_hash": "t" * 12}
    both = ("none", "strict")
    return [{"doc_id": i, "filter": f, "arguments": [(p, {})], **digests} for f in both for i, p in enumerate(prompts)]


def test_texts_become_items_that_pair_two_models() -> None:
    prompts = [f"p{index}" for index in range(20)]
    sound = {prompt: [Written((1, 2, 3, 4), True)] for prompt in prompts}
    broken = {prompt: [Written((5,) * 30, index < 4)] for index, prompt in enumerate(prompts)}
    (scores, items), (_, base) = (health_scores("t", _samples(prompts), one, "1", "d") for one in (broken, sound))
    values = {score.metric: score.value for score in scores}
    assert values == {"loops": 1.0, "unended": 0.8, "length": 30.0, "distinct_3": pytest.approx(1 / 28)}
    assert set(values) == set(METRICS) and all(score.n == 20 and score.filter == "none" for score in scores)
    pairs = {one.metric: compare(before, one) for before, one in zip(base, items, strict=True)}
    assert pairs["loops"].difference == 1.0 and pairs["loops"].test == "mcnemar" and pairs["loops"].p < 1e-5
    assert pairs["length"].difference == 26.0
    assert health_scores("t", _samples([*prompts, "other"]), sound, "1", "d") == ([], [])


def test_generating_tasks_tell_the_health_of_their_texts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    tasks = write_local_tasks(tmp_path)
    found = evaluate(tiny_model("mixtral"), _tokenizer(), ["local_write"], include_path=tasks, model_digest="m")
    values = {score.metric: score.value for score in found.scores}
    assert set(values) == {"exact_match", *METRICS}
    lengths = found.items["local_write", "length", "none"].values
    unended = found.items["local_write", "unended", "none"].values
    assert len(lengths) == 6 and all(0 <= length <= 4 for length in lengths)
    assert all(length == 4 for length, missing in zip(lengths, unended, strict=True) if missing)
    assert found.items["local_write", "length", "none"].ids == found.items["local_write", "exact_match", "none"].ids
