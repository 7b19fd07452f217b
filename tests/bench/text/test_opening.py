"""Beginnings of windows: as evaluation puts them there, whatever the source, and within what the model reads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from lm_eval.models.huggingface import HFLM
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from bench.checkpoint.checkpoint import Checkpoint
from bench.pocket.language.lexicon import BOUNDARY, vocabulary
from bench.settings.stage_settings import CalibrationConfig
from bench.text.corpus import Corpus, parse
from methods.framework.errors import ConfigError
from tests.support.tiny import tiny_checkpoint

WORDS = {"[gMASK]": 0, "<s>": 1, "</s>": 2, **{f"w{index}": index + 3 for index in range(50)}, "the": 53}


def made(folder: Path, opening: str, words: dict[str, int] = WORDS, **special: str) -> Checkpoint:
    """Return a tiny checkpoint whose tokenizer puts ``opening`` before each text."""
    tiny_checkpoint("mixtral", folder, vocab_size=len(vocabulary()), max_position_embeddings=32)
    inner = Tokenizer(models.WordLevel(words, unk_token=next(iter(words))))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if opening:
        marks = [(mark, words[mark]) for mark in opening.split()]
        inner.post_processor = processors.TemplateProcessing(f"{opening} $A", special_tokens=marks)
    PreTrainedTokenizerFast(tokenizer_object=inner, **special).save_pretrained(folder)
    return Checkpoint.open(folder)


@pytest.fixture(scope="module")
def adding(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return made(tmp_path_factory.mktemp("adding"), "<s>", bos_token="<s>", eos_token="</s>")


@pytest.fixture
def text(tmp_path: Path) -> str:
    path = tmp_path / "text.txt"
    path.write_text("".join(f"w{index % 50} " for index in range(100)))
    return str(path)


def openings(corpus: Corpus, count: int = 1) -> set[tuple[int, ...]]:
    return {window[:count] for window in corpus.windows}


def test_windows_begin_as_the_inputs_of_evaluation_do(adding: Checkpoint, text: str) -> None:
    from transformers import AutoTokenizer

    evaluated = HFLM.__new__(HFLM)  # the model is not what is asked about
    evaluated.tokenizer = AutoTokenizer.from_pretrained(adding.path)
    evaluated.add_bos_token = evaluated.custom_prefix_token_id = None
    corpus = parse(text, adding, 5, 8)
    assert corpus.windows[0] == tuple(evaluated.tok_encode(Path(text).read_text())[:8])
    assert openings(corpus) == {(1,)} and corpus.opening == (1,)
    assert [len(window) for window in corpus.windows] == [8] * 5
    assert [token for window in corpus.windows for token in window[1:]] == [3 + index for index in range(35)]


@pytest.mark.parametrize(("opening", "ids"), [("", ()), ("[gMASK] <s>", (0, 1))])
def test_what_a_tokenizer_adds_is_what_windows_begin_with(
    tmp_path: Path, text: str, opening: str, ids: tuple[int, ...]
) -> None:
    corpus = parse(text, made(tmp_path / "model", opening, bos_token="<s>"), 3, 8)
    assert corpus.opening == ids
    assert openings(corpus, len(ids)) == {ids} and corpus.tokens == 24
    assert corpus.windows[0][len(ids)] == 3


def test_a_vocabulary_without_the_probe_still_shows_its_beginning(tmp_path: Path) -> None:
    folder = made(tmp_path / "model", "<s>", bos_token="<s>").path
    letters = Tokenizer(models.BPE({"<s>": 0, "a": 1, "b": 2}, []))  # leaves out what it does not know
    letters.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 0)])
    PreTrainedTokenizerFast(tokenizer_object=letters, bos_token="<s>").save_pretrained(folder)
    (tmp_path / "text.txt").write_text("ab" * 20)
    assert parse(str(tmp_path / "text.txt"), Checkpoint.open(folder), 2, 3).windows == ((0, 1, 2), (0, 1, 2))


def test_always_and_never(adding: Checkpoint, tmp_path: Path, text: str) -> None:
    assert openings(parse(text, adding, 3, 8, bos="never")) == {(3,), (11,), (19,)}
    assert parse(text, adding, 3, 8, bos="always").digest == parse(text, adding, 3, 8).digest
    ending = made(tmp_path / "ending", "", eos_token="</s>")
    assert parse(text, ending, 3, 8).opening == ()
    assert openings(parse(text, ending, 3, 8, bos="always")) == {(2,)}, "lm-eval begins a document with the end token"
    with pytest.raises(ConfigError, match="neither a token for the beginning"):
        parse(text, made(tmp_path / "bare", ""), 3, 8, bos="always")


def test_other_sources_begin_so_too(adding: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    rows = tmp_path / "data" / "train.jsonl"
    rows.parent.mkdir()
    rows.write_text('{"text": "w1 w2 w3 w4 w5"}\n' * 20)
    assert openings(parse(f"datasets:{rows.parent}", adding, 4, 8)) == {(1,)}
    ids = tmp_path / "ids.json"
    ids.write_text("[[1, 7, 8], [9, 10]]")
    assert parse(str(ids), adding, 1, 2).windows == ((1, 7, 8), (1, 9, 10))
    assert parse(str(ids), adding, 1, 2, bos="never").windows == ((1, 7, 8), (9, 10))
    pocket = made(tmp_path / "pocket", BOUNDARY, dict(vocabulary()), bos_token=BOUNDARY)
    corpus = parse("pocket", pocket, 4, 16)
    assert openings(corpus) == {(vocabulary()[BOUNDARY],)} and [len(window) for window in corpus.windows] == [16] * 4
    twice = [window for window in corpus.windows if window[1] == window[0]]
    assert not twice, "a window that begins so already got a second beginning"


def test_without_a_tokenizer_ids_are_replayed(tmp_path: Path) -> None:
    bare = Checkpoint.open(tiny_checkpoint("mixtral", tmp_path / "bare"))
    (tmp_path / "ids.json").write_text("[[7, 8]]")
    assert parse(str(tmp_path / "ids.json"), bare, 1, 2).windows == ((7, 8),)
    with pytest.raises(ConfigError, match="has no tokenizer"):
        parse(str(tmp_path / "ids.json"), bare, 1, 2, bos="always")


def test_windows_longer_than_the_model_reads_are_refused(adding: Checkpoint, tmp_path: Path, text: str) -> None:
    assert parse(text, adding, 1, 32).tokens == 32
    with pytest.raises(ConfigError, match=r"windows of 33 tokens, .* reads at most 32 .*lower --length to 32"):
        parse(text, adding, 1, 33)
    (tmp_path / "ids.json").write_text(json.dumps([[5] * 32]))
    with pytest.raises(ConfigError, match=r"33 tokens.*1 of them are the beginning"):
        parse(str(tmp_path / "ids.json"), adding, 1, 2)
    with pytest.raises(ConfigError, match="hold nothing beside"):
        parse(text, adding, 1, 1)


@pytest.mark.parametrize("rows", ["[[1, [2]]]", "[" * 200 + "1" + "]" * 200, "[[NaN]]", '[["a"]]', "[[true]]", "[1]"])
def test_damaged_files_of_ids_are_one_clear_error(adding: Checkpoint, tmp_path: Path, rows: str) -> None:
    (tmp_path / "ids.json").write_text(rows)
    with pytest.raises(ConfigError):
        parse(str(tmp_path / "ids.json"), adding, 1, 2)


def test_the_setting_leaves_earlier_settings_as_they_are() -> None:
    document: dict[str, Any] = CalibrationConfig().model_dump(mode="json")
    assert "bos" not in document
    assert CalibrationConfig.model_validate(document).bos == "as evaluated"
    assert CalibrationConfig(bos="never").model_dump(mode="json")["bos"] == "never"
