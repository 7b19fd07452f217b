"""Scores of another backend: never taken for those of transformers, and compared item by item."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bench.evaluation.backend import Backend
from bench.evaluation.evaluate import Evaluation, evaluate
from bench.evaluation.language_model import LiveModel
from bench.evaluation.parity import parity
from bench.settings.stage_settings import EvaluationConfig
from methods.framework.errors import EvaluationError
from tests.bench.evaluation.test_evaluate import _tokenizer, write_local_tasks
from tests.support.tiny import tiny_model


class _Elsewhere(Backend):
    """The same model behind another name."""

    name = "elsewhere"

    def __init__(self, seed: int) -> None:
        self._model = tiny_model("mixtral", seed=seed)
        self.dtype, self.device, self.asked = self._model.dtype, self._model.device, 0

    def language_model(self, done: Callable[[int], None]) -> Any:
        self.asked += 1
        return LiveModel(self._model, _tokenizer(), batch_size=1, max_length=None, encodings={}, done=done)


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> tuple[Evaluation, Evaluation, Evaluation]:
    """Return the evaluation by transformers, by the other backend, and by the other backend with another model."""
    place = tmp_path_factory.mktemp("parity")
    folder, cache = write_local_tasks(place / "tasks"), place / "scores"
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("HF_HUB_OFFLINE", "1")
        models = (tiny_model("mixtral", seed=3), _Elsewhere(3), _Elsewhere(8))
        first, second, third = (
            evaluate(
                one,
                _tokenizer(),
                ["local_long", "local_text"],
                include_path=folder,
                model_digest="the same",
                cache=cache if number < 2 else None,
            )
            for number, one in enumerate(models)
        )
    assert models[1].asked == 2
    return first, second, third


def test_scores_of_another_backend_have_other_digests(both: tuple[Evaluation, Evaluation, Evaluation]) -> None:
    first, second, _ = both
    assert second.cached == ()  # though model and tasks are the same, and the cache is
    assert [one.value for one in second.scores] == pytest.approx([one.value for one in first.scores], rel=1e-5)
    assert not {one.digest for one in first.scores} & {one.digest for one in second.scores}


def test_agreement_is_counted_item_by_item(both: tuple[Evaluation, Evaluation, Evaluation]) -> None:
    first, second, other = both
    same = parity(first, second)
    assert {(row.task, row.metric) for row in same} == {(score.task, score.metric) for score in first.scores}
    assert all(row.agree == 1.0 and row.widest < 1e-2 for row in same)
    changed = {(row.task, row.metric): row for row in parity(first, other)}
    row = changed["local_long", "acc"]
    mine, theirs = (one.items["local_long", "acc", "none"].values for one in (first, other))
    assert row.agree == sum(a == b for a, b in zip(mine, theirs, strict=True)) / 12 < 1.0 and row.widest == 1.0
    assert changed["local_text", "word_perplexity"].agree < 1.0


def test_other_items_are_refused(both: tuple[Evaluation, Evaluation, Evaluation]) -> None:
    first, second, _ = both
    key = ("local_long", "acc", "none")
    moved = {**second.items, key: replace(second.items[key], ids=tuple(reversed(second.items[key].ids)))}
    with pytest.raises(EvaluationError, match="local_long/acc/none hold other items"):
        parity(first, replace(second, items=moved))
    with pytest.raises(EvaluationError, match="only one of the two"):
        parity(first, replace(second, items={key: second.items[key]}))


def test_settings_of_a_backend_come_with_it(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="are for backend: vllm"):
        EvaluationConfig(tensor_parallel=2)
    served = EvaluationConfig(backend="vllm", tensor_parallel=2)
    assert served.model_dump()["backend"] == "vllm" and "backend" not in EvaluationConfig().model_dump()
