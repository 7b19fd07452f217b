"""Evaluation: tasks by name, agreement with lm-eval's own model class, resuming, items."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

import bench.evaluation.evaluate
from bench.evaluation.evaluate import Evaluation, check_tasks, evaluate
from bench.evaluation.health import METRICS
from bench.evaluation.items import Items, items_from, save_items, standard_error
from bench.evaluation.paired import pair_scores
from methods.framework.errors import EvaluationError
from tests.support.tiny import tiny_model

WORDS = [f"w{index}" for index in range(150)]


def _tokenizer() -> PreTrainedTokenizerFast:
    vocabulary = {"<s>": 0, "</s>": 1, "<unk>": 2, **{word: 3 + index for index, word in enumerate(WORDS)}}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=words, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def _text(draw: random.Random, low: int, high: int) -> str:
    return " ".join(draw.choices(WORDS, k=draw.randint(low, high)))


def _mean(metric: str) -> dict[str, Any]:
    return {"metric": metric, "aggregation": "mean", "higher_is_better": True}


CHOICE = {
    "output_type": "multiple_choice",
    "doc_to_text": "{{question}}",
    "doc_to_choice": "{{choices}}",
    "doc_to_target": "{{answer}}",
    "metric_list": [_mean("acc"), _mean("acc_norm")],
}
TEXT_METRICS = [
    {"metric": "word_perplexity", "aggregation": "weighted_perplexity", "higher_is_better": False},
    {"metric": "bits_per_byte", "aggregation": "bits_per_byte", "higher_is_better": False},
]


def write_local_tasks(folder: Path) -> Path:
    """Three kinds of task, and a group of two multiple-choice tasks."""
    draw = random.Random(0)
    folder.mkdir(parents=True, exist_ok=True)

    def choices(longest: int) -> list[dict[str, Any]]:
        rows = []
        for _ in range(12):
            options = [_text(draw, 1, longest) for _ in range(3)]
            rows.append({"question": _text(draw, 3, 9), "choices": options, "answer": draw.randrange(3)})
        return rows

    tasks: dict[str, tuple[list[dict[str, Any]], dict[str, Any]]] = {
        "local_short": (choices(1), CHOICE),
        "local_long": (choices(4), CHOICE),
        "local_text": (
            [{"text": _text(draw, 20, 60)} for _ in range(6)],
            {
                "output_type": "loglikelihood_rolling",
                "doc_to_text": "",
                "doc_to_target": "{{text}}",
                "metric_list": TEXT_METRICS,
            },
        ),
        "local_write": (
            [{"question": _text(draw, 3, 6), "answer": _text(draw, 1, 1)} for _ in range(6)],
            {
                "output_type": "generate_until",
                "doc_to_text": "{{question}}",
                "doc_to_target": "{{answer}}",
                "generation_kwargs": {"until": ["\n"], "do_sample": False, "max_gen_toks": 4},
                "metric_list": [_mean("exact_match")],
            },
        ),
    }
    for name, (rows, settings) in tasks.items():
        data = folder / f"{name}.jsonl"
        data.write_text("".join(json.dumps(row) + "\n" for row in rows))
        places = {"task": name, "dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(data)}}}
        splits = {"test_split": "test", "fewshot_split": "test", "metadata": {"version": 2.0}}
        (folder / f"{name}.yaml").write_text(json.dumps({**places, **splits, **settings}))
    group = {"metric": "acc", "aggregation": "mean", "weight_by_size": True}
    names = ["local_short", "local_long"]
    (folder / "group.yaml").write_text(
        json.dumps({"group": "local_both", "task": names, "aggregate_metric_list": [group]})
    )
    return folder


ALL = ("local_short", "local_long", "local_text", "local_write")


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_local_tasks(tmp_path_factory.mktemp("tasks"))


@pytest.fixture(scope="module")
def model() -> Any:
    return tiny_model("mixtral")


@pytest.fixture(scope="module")
def evaluation(model: Any, tasks: Path) -> Evaluation:
    return evaluate(model, _tokenizer(), ALL, include_path=tasks, model_digest="m")


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    yield


def _by_key(evaluation: Evaluation) -> dict[tuple[str, str], Any]:
    return {(score.task, score.metric): score for score in evaluation.scores}


@pytest.mark.e2e
@pytest.mark.parametrize("family", ["mixtral", "qwen2_moe", "deepseek_v2"])
def test_same_numbers_as_lm_eval_with_its_own_model_class(family: str, tasks: Path) -> None:
    import lm_eval
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    model, tokenizer = tiny_model(family, seed=3), _tokenizer()
    ours = evaluate(model, tokenizer, ALL, include_path=tasks, model_digest="m", max_length=14, num_fewshot=1, seed=5)
    theirs = lm_eval.simple_evaluate(
        model=HFLM(pretrained=model, tokenizer=tokenizer, batch_size=2, max_length=14),
        tasks=list(ALL),
        num_fewshot=1,
        fewshot_random_seed=5,
        task_manager=TaskManager(include_path=str(tasks), include_defaults=False),
        bootstrap_iters=100,
    )
    assert len(ours.scores) == 2 + 2 + 2 + 1 + len(METRICS)
    for score in ours.scores:
        if score.metric in METRICS:
            continue  # lm-eval does not look at texts
        expected = theirs["results"][score.task]
        assert score.value == pytest.approx(expected[f"{score.metric},none"], rel=1e-5), score
        if score.metric in ("acc", "acc_norm", "exact_match"):
            assert score.stderr == pytest.approx(expected[f"{score.metric}_stderr,none"], rel=1e-6)
        assert score.n == theirs["n-samples"][score.task]["effective"]
        samples = theirs["samples"][score.task]
        items = ours.items[score.task, score.metric, "none"]
        for value, weight, sample in zip(items.values, items.weights, samples, strict=True):
            answer = sample[score.metric]
            assert (value, weight) == pytest.approx(answer if isinstance(answer, tuple) else (answer, 1.0), rel=1e-5)


@pytest.mark.e2e
def test_batching_does_not_change_the_answers(model: Any, tasks: Path, evaluation: Evaluation) -> None:
    single = evaluate(model, _tokenizer(), ALL, include_path=tasks, model_digest="m", batch_size=1)
    for score, other in zip(evaluation.scores, single.scores, strict=True):
        assert score.value == pytest.approx(other.value, rel=1e-5)


@pytest.mark.e2e
def test_scores_hold_what_a_record_needs(evaluation: Evaluation) -> None:
    scores = _by_key(evaluation)
    assert (
        scores["local_short", "acc"].higher_is_better and not scores["local_text", "word_perplexity"].higher_is_better
    )
    assert scores["local_short", "acc"].version == "2.0" and scores["local_short", "acc"].n == 12
    assert scores["local_text", "word_perplexity"].stderr > 0
    items = evaluation.items["local_text", "bits_per_byte", "none"]
    rate = -sum(items.values) / sum(items.weights)
    assert scores["local_text", "bits_per_byte"].value == pytest.approx(rate / math.log(2))
    assert all(len(set(one.ids)) == len(one.ids) == len(one.values) for one in evaluation.items.values())
    assert evaluation.cached == ()


@pytest.mark.e2e
def test_global_random_state_is_left_alone(model: Any, tasks: Path) -> None:
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    expected = random.random(), np.random.rand(), torch.rand(1).item()
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    evaluate(model, _tokenizer(), ["local_short"], include_path=tasks, model_digest="m")
    assert (random.random(), np.random.rand(), torch.rand(1).item()) == expected


@pytest.mark.e2e
def test_digest_follows_what_is_asked_and_not_where_it_lies(
    model: Any, tasks: Path, tmp_path: Path, evaluation: Evaluation
) -> None:
    def digest(folder: Path, **settings: Any) -> str:
        name = "local_long"
        found = evaluate(model, _tokenizer(), [name], include_path=folder, model_digest="m", **settings)
        return found.scores[0].digest

    moved = write_local_tasks(tmp_path / "moved")
    known = _by_key(evaluation)["local_long", "acc"].digest
    assert digest(moved) == known
    others = [digest(moved, limit=5), digest(moved, num_fewshot=1), digest(moved, seed=1), digest(moved, max_length=16)]
    data = moved / "local_long.jsonl"
    data.write_text(data.read_text().replace("w1 ", "w2 ", 1))
    others.append(digest(moved))  # the changed file is read again in the same process
    definition = json.loads((moved / "local_long.yaml").read_text())
    definition["metric_list"] = [_mean("acc")]
    (moved / "local_long.yaml").write_text(json.dumps(definition))
    others.append(digest(moved))
    assert len({known, *others}) == 7


@pytest.mark.e2e
def test_interrupted_evaluation_continues_with_the_next_task(
    model: Any, tasks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, evaluation: Evaluation
) -> None:
    settings: dict[str, Any] = {"include_path": tasks, "cache": tmp_path}
    run = bench.evaluation.evaluate._run

    def stop(model: Any, tokenizer: Any, tokens: str, leaf: Any, *rest: Any) -> Any:
        if leaf.name == "local_text":
            raise KeyboardInterrupt
        return run(model, tokenizer, tokens, leaf, *rest)

    monkeypatch.setattr(bench.evaluation.evaluate, "_run", stop)
    with pytest.raises(KeyboardInterrupt):
        evaluate(model, _tokenizer(), ALL, model_digest="a", **settings)
    monkeypatch.undo()
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    asked: list[tuple[str, int, int]] = []
    second = evaluate(
        model, _tokenizer(), ALL, model_digest="a", progress=lambda *report: asked.append(report), **settings
    )
    assert second.cached == ("local_short", "local_long")
    assert {name for name, _, _ in asked} == {"local_text", "local_write"}
    assert all(0 < done <= total for _, done, total in asked)
    assert {(n, d) for n, d, t in asked if d == t} == {("local_text", 6), ("local_write", 6)}
    assert second.scores == evaluation.scores and dict(second.items) == dict(evaluation.items)
    other = tiny_model("mixtral", seed=9)
    assert evaluate(other, _tokenizer(), ["local_short"], model_digest="b", **settings).cached == ()
    assert evaluate(other, _tokenizer(), ["local_short"], model_digest="a", limit=3, **settings).cached == ()
    half = tiny_model("mixtral").bfloat16()
    assert evaluate(half, _tokenizer(), ["local_short"], model_digest="a", **settings).cached == ()
    for path in tmp_path.iterdir():
        path.write_text(path.read_text()[:100])
    third = evaluate(model, _tokenizer(), ["local_short"], model_digest="a", **settings)
    assert third.cached == () and third.scores == evaluation.scores[:2]


@pytest.mark.e2e
def test_group_is_the_mean_over_its_items(model: Any, tasks: Path, evaluation: Evaluation) -> None:
    found = evaluate(model, _tokenizer(), ["local_both"], include_path=tasks, model_digest="m")
    group = _by_key(found)["local_both", "acc"]
    parts = [_by_key(evaluation)[name, "acc"].value for name in ("local_short", "local_long")]
    assert group.value == pytest.approx(sum(parts) / 2) and group.n == 24 and group.stderr is not None
    assert len(found.items["local_both", "acc", "none"].values) == 24
    other = evaluate(tiny_model("mixtral", seed=4), _tokenizer(), ["local_both"], include_path=tasks, model_digest="o")
    paired = pair_scores(other.scores, other.items, found.items)
    assert all(score.paired is not None for score in paired)
    difference = next(score.paired.difference for score in paired if score.task == "local_both" and score.paired)
    assert difference == pytest.approx(_by_key(other)["local_both", "acc"].value - group.value)


@pytest.mark.e2e
def test_unknown_and_broken_tasks_are_told(model: Any, tasks: Path, tmp_path: Path) -> None:
    check_tasks(ALL, tasks)
    with pytest.raises(EvaluationError, match="unknown evaluation task 'local_shrt'; did you mean 'local_short'"):
        check_tasks(["local_short", "local_shrt"], tasks)
    with pytest.raises(EvaluationError, match="no evaluation task"):
        check_tasks([], tasks)
    with pytest.raises(EvaluationError, match="not a folder"):
        check_tasks(ALL, tmp_path / "nowhere")
    broken = write_local_tasks(tmp_path / "broken")
    (broken / "local_short.jsonl").unlink()
    with pytest.raises(EvaluationError, match=r"'local_short' cannot be loaded.*--include-path"):
        evaluate(model, _tokenizer(), ALL, include_path=broken, model_digest="m")


# Items need no lm-eval.


def _items(values: list[float], statistic: Any = "mean", weights: list[float] | None = None) -> Items:
    ids = tuple(str(index) for index in range(len(values)))
    return Items("t/a", "acc", "none", statistic, ids, tuple(values), tuple(weights or [1.0] * len(values)))


def test_standard_error_of_a_mean_is_lm_evals() -> None:
    values = [1.0, 0.0, 0.0, 1.0, 1.0]
    mean = sum(values) / 5
    expected = math.sqrt(sum((value - mean) ** 2 for value in values) / 4) / math.sqrt(5)
    assert standard_error(_items(values)) == pytest.approx(expected)
    assert standard_error(_items([1.0])) is None


@pytest.mark.parametrize("statistic", ["perplexity", "bits"])
def test_standard_error_of_a_corpus_metric_is_that_of_resampled_documents(statistic: str) -> None:
    draw = np.random.default_rng(0)
    weights = draw.integers(50, 150, 200).astype(float)
    values = -weights * draw.normal(2.0, 0.3, 200)
    resampled = []
    for _ in range(4000):
        chosen = draw.integers(200, size=200)
        rate = -values[chosen].sum() / weights[chosen].sum()
        resampled.append(math.exp(rate) if statistic == "perplexity" else rate / math.log(2))
    error = standard_error(_items(values.tolist(), statistic, weights.tolist()))
    assert error == pytest.approx(float(np.std(resampled)), rel=0.05)


def test_items_survive_the_disk(tmp_path: Path) -> None:
    one, two = _items([0.1 + 0.2, 1.0]), _items([-3.0, -4.5], "perplexity", [2.0, 3.0])
    two = replace(two, metric="word_perplexity")
    three = replace(one, task="other")
    save_items([one, two, three], tmp_path)
    assert len(list(tmp_path.iterdir())) == 2
    read = [items_from(fields) for path in sorted(tmp_path.iterdir()) for fields in json.loads(path.read_text())]
    assert {item.key: item for item in read} == {item.key: item for item in (one, two, three)}


def test_a_model_whose_outputs_are_not_finite_gets_no_score(tasks: Path) -> None:
    model = tiny_model("mixtral")
    with torch.no_grad():
        next(model.lm_head.parameters())[0, 0] = float("nan")
    with pytest.raises(EvaluationError, match="not finite"):
        evaluate(model, _tokenizer(), ["local_short"], include_path=tasks, model_digest="nan")
    with pytest.raises(EvaluationError, match=r"writes a text: .*not finite"):
        evaluate(model, _tokenizer(), ["local_write"], include_path=tasks, model_digest="nan")


def test_scores_whose_file_was_damaged_are_computed_again(tasks: Path, tmp_path: Path) -> None:
    model = tiny_model("mixtral")

    def score() -> Evaluation:
        return evaluate(model, _tokenizer(), ["local_short"], include_path=tasks, model_digest="m", cache=tmp_path)

    first = score()
    assert score().cached == ("local_short",)
    (file,) = tmp_path.glob("*.json")
    document = json.loads(file.read_text())
    document["value"]["scores"][0]["value"] += 0.25
    file.write_text(json.dumps(document))
    again = score()
    assert again.cached == () and again.scores == first.scores
