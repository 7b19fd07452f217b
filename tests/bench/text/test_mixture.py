"""Mixtures and conversations: shares of the windows, the model's own template, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.checkpoint.checkpoint import Checkpoint
from bench.settings.mixture import one_line, shares_of, windows_of
from bench.settings.stage_settings import CalibrationConfig
from bench.settings.strict import validated
from bench.text.corpus import parse
from methods.framework.errors import ConfigError
from sweeps.grid_config import GridCalibration
from tests.bench.text.test_opening import made

TEMPLATE = "{{ bos_token }}{% for m in messages %} {{ m.role }} {{ m.content }} </s>{% endfor %}"
WORDS = {"<unk>": 0, "<s>": 1, "</s>": 2, "user": 3, "assistant": 4, **{f"w{index}": index + 5 for index in range(50)}}
TURNS = [{"role": "user", "content": "w1 w2"}, {"role": "assistant", "content": "w3"}]


@pytest.fixture(scope="module")
def talking(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    folder = tmp_path_factory.mktemp("talking")
    return made(folder, "<s>", WORDS, bos_token="<s>", eos_token="</s>", chat_template=TEMPLATE)


def written(path: Path, *rows: Any) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return f"chat:{path}"


def test_a_mixture_gives_each_source_its_share(talking: Checkpoint, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("w1 " * 500)
    (tmp_path / "b.txt").write_text("w2 " * 500)
    entries = [{"corpus": f"{tmp_path / 'a.txt'}", "share": 0.75}, {"corpus": f"{tmp_path / 'b.txt'}", "share": 0.25}]
    config = validated({"corpus": entries}, CalibrationConfig, "calibration")
    assert config.corpus == f"{tmp_path / 'a.txt'}=0.75,{tmp_path / 'b.txt'}=0.25"
    assert validated({"corpora": ["pocket", entries]}, GridCalibration, "grid").corpora == ("pocket", config.corpus)
    corpus = parse(config.corpus, talking, 8, 4)
    assert corpus.windows == ((1, 6, 6, 6),) * 6 + ((1, 7, 7, 7),) * 2
    assert dict(corpus.sources) == {f"{tmp_path / 'a.txt'}": 6, f"{tmp_path / 'b.txt'}": 2}
    assert parse(f"{tmp_path / 'a.txt'}", talking, 8, 4).sources == ()


def test_commas_within_a_source_stay() -> None:
    assert shares_of("pocket:facts,stories=.5,b.txt=0.5") == (("pocket:facts,stories", 0.5), ("b.txt", 0.5))
    assert shares_of("pocket:facts,stories") == () == shares_of("a=0.5,b")


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("a.txt=0.5,b.txt=0.4", "sum to 0.9"),
        ("a.txt=1,b.txt=0", "positive"),
        ("a.txt=0.5,ids.npy=0.5", "no share"),
        ("a.txt=0.5,a.txt=0.5", "twice"),
        ("a.txt=0.99,b.txt=0.01", "at least one window"),
        ("x" * 5000, "no such file|File name too long"),
    ],
)
def test_mixtures_that_make_no_sense_are_refused(talking: Checkpoint, spec: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse(spec, talking, 4, 4)


@pytest.mark.parametrize(
    "entries",
    [[], [3], [{"corpus": "a"}], [{"corpus": "a", "share": "0.5"}], [{"corpus": "a=0.5,b", "share": 1.0}]],
)
def test_lists_that_are_no_mixture_are_refused(entries: list[Any]) -> None:
    with pytest.raises(ConfigError, match=r"mixture|sum to 1.5"):
        validated({"corpus": entries}, CalibrationConfig, "calibration")


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(1, 1000), min_size=1, max_size=6), st.integers(1, 500))
def test_windows_add_up_and_lists_come_back_from_lines(weights: list[int], sequences: int) -> None:
    shares = [weight / sum(weights) for weight in weights]
    counts = windows_of(shares, sequences)
    assert sum(counts) == sequences
    assert all(abs(count - share * sequences) < 1 for count, share in zip(counts, shares, strict=True))
    entries = [{"corpus": f"s{index}", "share": share} for index, share in enumerate(shares)]
    assert shares_of(one_line(entries)) == tuple((f"s{index}", share) for index, share in enumerate(shares))


def test_conversations_are_read_in_the_template_of_the_model(
    talking: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = (1, 3, 6, 7, 2, 4, 8, 2)
    spec = written(tmp_path / "talk.jsonl", *[{"messages": TURNS}] * 6)
    assert parse(spec, talking, 3, 8).windows == (told,) * 3, (
        "a template that begins a sequence is not given a second one"
    )
    assert parse(spec, talking, 3, 8, bos="never").windows == (told,) * 3
    assert parse(spec, talking, 2, 4).windows == (told[:4], (1, *told[4:7]))
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    (tmp_path / "data").mkdir()
    written(tmp_path / "data" / "train.jsonl", *[{"messages": TURNS}] * 6)
    assert parse(f"datasets:{tmp_path / 'data'}::train:messages", talking, 3, 8).windows == (told,) * 3


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"text": "w1"}, "object with messages"),
        ({"messages": TURNS, "mask": [0, 1]}, "masks of data sets are not read"),
        ({"messages": [{**TURNS[0], "weight": 0}]}, "a mask of the data set is not read"),
        ({"messages": []}, "not a conversation"),
        ({"messages": ["w1"]}, "not a conversation"),
        ([], "object with messages"),
    ],
)
def test_conversations_that_cannot_be_counted_are_refused(
    talking: Checkpoint, tmp_path: Path, row: Any, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        parse(written(tmp_path / "talk.jsonl", row), talking, 1, 4)


def test_a_model_without_a_template_has_no_conversations(tmp_path: Path) -> None:
    silent = made(tmp_path / "silent", "", WORDS)
    with pytest.raises(ConfigError, match="has none; add chat_template"):
        parse(written(tmp_path / "talk.jsonl", {"messages": TURNS}), silent, 1, 4)
    with pytest.raises(ConfigError, match="cannot read"):
        parse(f"chat:{tmp_path / 'absent.jsonl'}", silent, 1, 4)
