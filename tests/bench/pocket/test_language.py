"""The language: determinism, separation of splits, fairness of items, tokens."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path

import pytest

from bench.pocket import DOMAINS, TASKS, corpus, write_tasks
from bench.pocket.language import (
    DOMAIN_WEIGHTS,
    arithmetic,
    brackets,
    domain,
    facts,
    items,
    marked_windows,
    windows,
)
from bench.pocket.language.instance import Item, choose, split_of
from bench.pocket.language.lexicon import SPECIALS, encode, invented_words, vocabulary
from tests.support.places import ROOT

GENERALISING = tuple(name for name in DOMAINS if name != "facts")


def written(name: str, split: str, seed: int, count: int) -> list[str]:
    rng = random.Random(seed)
    documents = [domain(name).document(rng, split) for _ in range(count)]  # type: ignore[arg-type]  # a split by name
    return [" ".join(words for part in document for words in part if words) for document in documents]


def test_there_are_eight_domains_with_weights_that_sum_to_one() -> None:
    assert len(DOMAINS) == 8
    assert tuple(DOMAIN_WEIGHTS) == DOMAINS
    assert sum(DOMAIN_WEIGHTS.values()) == pytest.approx(1.0)


@pytest.mark.parametrize("name", DOMAINS)
def test_a_seed_decides_the_text_and_another_changes_it(name: str) -> None:
    assert written(name, "train", 3, 20) == written(name, "train", 3, 20)
    assert written(name, "train", 3, 20) != written(name, "train", 4, 20)
    assert list(items(name, 3, 20)) == list(items(name, 3, 20))
    assert list(items(name, 3, 20)) != list(items(name, 4, 20))


def test_the_text_does_not_depend_on_the_hash_seed_of_the_process() -> None:
    code = "from bench.pocket import corpus, DOMAINS; print(corpus(DOMAINS, 5, 600))"
    outputs = set()
    for hash_seed in ("1", "2"):
        done = subprocess.run(
            [sys.executable, "-c", code],
            env={"PYTHONHASHSEED": hash_seed, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            check=True,
        )
        outputs.add(done.stdout)
    assert len(outputs) == 1


@pytest.mark.parametrize("name", GENERALISING)
def test_no_item_stands_in_training_or_calibration_text(name: str) -> None:
    seen = "".join(
        f"\n{text}"
        for split in ("train", "calibration")
        for seed in range(2)
        for text in written(name, split, seed, 3000)
    )
    start = "\n" if name == "brackets" else ""  # inside a longer word, any short balanced word may occur
    for item in items(name, 1, 200):
        assert f"{start}{item.context} {item.choices[item.answer]} " not in seen
        if name != "agreement":  # the beginning of a longer subject may be the whole of a shorter one
            assert f"{start}{item.context} " not in seen


@pytest.mark.parametrize("name", GENERALISING)
def test_the_splits_share_no_document(name: str) -> None:
    texts = {split: set(written(name, split, 0, 1500)) for split in ("train", "calibration", "test")}
    assert not texts["train"] & texts["test"]
    assert not texts["train"] & texts["calibration"]
    assert not texts["calibration"] & texts["test"]


def test_the_split_takes_about_a_tenth_for_the_test() -> None:
    shares = [split_of(str(number)) for number in range(5000)]
    assert 0.07 < shares.count("test") / 5000 < 0.13
    assert 0.07 < shares.count("calibration") / 5000 < 0.13


@pytest.mark.parametrize("name", DOMAINS)
def test_items_have_distinct_choices_a_fair_chance_and_no_favoured_place(name: str) -> None:
    questions = items(name, 1, 300)
    options = domain(name).OPTIONS
    assert 0.25 <= 1 / options <= 0.5
    for question in questions:
        assert len(set(question.choices)) == len(question.choices) == options
        assert len({len(choice.split()) for choice in question.choices}) == 1
    for place in range(options):
        share = sum(question.answer == place for question in questions) / len(questions)
        assert abs(share - 1 / options) < 0.1


def solve(name: str, item: Item) -> list[str]:
    """Work the right choices out from the text of an item, independently of the generator."""
    words = item.context.split()
    if name == "arithmetic":
        left, right = int(words[0] + words[1]), int(words[3] + words[4])
        value = left + right if words[2] == "+" else left - right
        return [f"{value // 10} {value % 10}"]
    if name == "agreement":
        return [choice for choice in item.choices if choice.endswith("s") != words[1].endswith("s")]
    if name == "sequences":
        letters = words[1:-1]
        return [" ".join(sorted(letters) if words[0] == "sort" else letters)]
    if name == "brackets":
        stack: list[str] = []
        for word in words:
            if word in brackets.CLOSER:
                stack.append(brackets.CLOSER[word])
            else:
                assert stack.pop() == word
        return [stack[-1]]
    if name == "programs":
        *lines, last = " ".join(words).split(" ; ")
        values: dict[str, int] = {}
        for line in lines:
            operation, variable, number = line.split()
            old = values.get(variable, 0)
            values[variable] = {"set": int(number), "add": old + int(number), "take": old - int(number)}[operation]
        return [str(values[last.split()[1]])]
    if name == "stories":
        *lines, last = " ".join(words).split(" . ")
        rooms = {line.split()[1]: line.split()[2] for line in lines}
        return [rooms[last.split()[2]]]
    if name == "translation":
        source, target = words[0], words[-1]
        lexicon = invented_words()
        meaning = {}
        for kind in ("noun", "verb", "adjective"):
            meaning.update(zip(lexicon[f"{source}_{kind}"], lexicon[f"{target}_{kind}"], strict=True))
        first, second, third, fourth = (meaning[word] for word in words[1:-1])
        return [f"{third} {second} {first} {fourth}"]
    known = {form.format(fact.name): fact.value for fact in facts.all_facts() for form in facts.FORMS[fact.attribute]}
    return [known[item.context]]


@pytest.mark.parametrize("name", DOMAINS)
def test_exactly_one_choice_is_right(name: str) -> None:
    for item in items(name, 2, 150):
        right = solve(name, item)
        assert [choice for choice in item.choices if choice in right] == [item.choices[item.answer]]


def test_every_value_of_an_attribute_is_held_about_equally_often() -> None:
    for attribute in facts.FORMS:
        counts = [
            sum(fact.value == value for fact in facts.all_facts() if fact.attribute == attribute)
            for value in facts.values_of(attribute)
        ]
        assert max(counts) - min(counts) <= 1


def test_arithmetic_has_carries_and_borrows() -> None:
    problems = [item.context.split() for item in items("arithmetic", 1, 200)]
    carries = sum(p[2] == "+" and int(p[1]) + int(p[4]) > 9 for p in problems)
    borrows = sum(p[2] == "-" and int(p[1]) < int(p[4]) for p in problems)
    assert carries > 20
    assert borrows > 20
    assert arithmetic.digits(7) == "0 7"


def test_every_word_is_used_and_no_text_has_an_unknown_word() -> None:
    used: set[int] = set()
    for name in DOMAINS:
        for text in written(name, "train", 0, 1500):
            used.update(encode(text))
        for item in items(name, 1, 50):
            encode(item.context)
            for choice in item.choices:
                encode(choice)
    assert used == set(range(len(SPECIALS), len(vocabulary())))


def test_windows_have_the_asked_length_and_open_with_and_without_the_boundary() -> None:
    stream = windows(random.Random(0), "train", DOMAIN_WEIGHTS, 64)
    opened = [next(stream) for _ in range(50)]
    boundary = vocabulary()["<s>"]
    assert {len(window) for window in opened} == {64}
    assert 10 < sum(window[0] == boundary for window in opened) < 40


def test_marks_stand_on_what_follows_from_the_text_before() -> None:
    words = list(vocabulary())
    ids, marks = next(marked_windows(random.Random(3), "train", {"arithmetic": 1.0}, 40))
    marked = [words[token] for token, mark in zip(ids, marks, strict=True) if mark]
    unmarked = [words[token] for token, mark in zip(ids, marks, strict=True) if not mark]
    assert "." in marked
    assert not {"+", "-", "="} & set(marked)
    assert "." not in unmarked
    assert "=" in unmarked


def test_too_many_items_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bench.pocket.language.ATTEMPTS", 2)  # a search of the usual length takes ten seconds
    with pytest.raises(ValueError, match="ask for fewer"):
        items("facts", 0, 3000)


def test_corpus_of_one_domain_has_its_words_only_and_the_asked_size() -> None:
    words = list(vocabulary())
    text = corpus(["brackets"], seed=1, tokens=1000, length=100)
    symbols = {*brackets.CLOSER, *brackets.CLOSER.values(), ".", "<s>"}
    assert sum(map(len, text)) == 1000
    assert {words[token] for window in text for token in window} == symbols
    assert corpus(seed=1, tokens=500) != corpus(seed=2, tokens=500)


@pytest.mark.parametrize("arguments", [{"domains": ["poetry"]}, {"domains": []}, {"tokens": 0}, {"split": "dev"}])
def test_corpus_refuses_what_does_not_exist(arguments: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"domains are|positive|splits are"):
        corpus(**arguments)  # type: ignore[arg-type]  # wrong on purpose


def test_an_item_needs_enough_wrong_choices() -> None:
    with pytest.raises(ValueError, match="3 wrong continuations"):
        choose(random.Random(0), "context", "right", ["wrong", "right", "wrong"], options=4)


def test_tasks_are_written_once_and_read_back(tmp_path: Path) -> None:
    folder = write_tasks(tmp_path, items=5)
    stamps = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert {path.stem for path in folder.glob("*.yaml")} == set(TASKS)
    assert write_tasks(tmp_path, items=5) == folder
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == stamps
    assert write_tasks(tmp_path, items=5, seed=9) != folder
    assert [path for path in tmp_path.iterdir() if path.name.startswith(".")] == []
    definition = json.loads((folder / "pocket_facts.yaml").read_text())
    data = Path(definition["dataset_kwargs"]["data_files"]["test"]).read_text()
    rows = [json.loads(line) for line in data.splitlines()]
    assert [row["context"] for row in rows] == [item.context for item in items("facts", 1, 5)]


def test_importing_the_package_loads_no_torch() -> None:
    code = "import sys, bench.pocket; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
