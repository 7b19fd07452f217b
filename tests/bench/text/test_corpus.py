"""Corpora: every source, joined sources, exact replay, and errors that say what to do."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from bench.checkpoint.checkpoint import Checkpoint
from bench.pocket.language.lexicon import vocabulary
from bench.pocket.tokenizer import save_tokenizer
from bench.text.corpus import Corpus, parse
from methods.framework.errors import ConfigError, UnknownNameError
from tests.support.tiny import tiny_checkpoint

WORDS = [f"w{i}" for i in range(100)]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """Return a tiny checkpoint whose tokenizer knows w0 .. w99 as ids 1 .. 100 and ends a document with 0."""
    folder = tiny_checkpoint("mixtral", tmp_path_factory.mktemp("model"))
    table = {"<end>": 0, **{word: index + 1 for index, word in enumerate(WORDS)}}
    tokenizer = Tokenizer(models.WordLevel(table, unk_token="<end>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>", model_max_length=8).save_pretrained(folder)
    return Checkpoint.open(folder)


def write_text(path: Path, count: int, seed: int = 0) -> list[int]:
    """Write lines of ten words and return the ids of all of them."""
    rng = random.Random(seed)
    ids = [rng.randrange(100) for _ in range(count)]
    lines = [" ".join(WORDS[i] for i in ids[start : start + 10]) for start in range(0, count, 10)]
    path.write_text("\n".join(lines) + "\n")
    return [i + 1 for i in ids]


def flat(corpus: Corpus) -> list[int]:
    return [token for window in corpus.windows for token in window]


def test_text_is_packed_in_order(checkpoint, tmp_path):
    ids = write_text(tmp_path / "a.txt", 30)
    corpus = parse(str(tmp_path / "a.txt"), checkpoint, sequences=1, length=28)
    assert flat(corpus) == ids[:28]
    assert corpus.tokens == 28


def test_every_joined_source_counts(checkpoint, tmp_path):
    (tmp_path / "a.txt").write_text("w1 " * 500)
    (tmp_path / "b.txt").write_text("w2 " * 500)
    corpus = parse(f"{tmp_path / 'a.txt'}+{tmp_path / 'b.txt'}", checkpoint, sequences=5, length=8)
    assert [set(window) for window in corpus.windows] == [{2}, {2}, {2}, {3}, {3}]


def test_every_domain_of_the_pocket_language_counts(tmp_path):
    folder = tiny_checkpoint("mixtral", tmp_path, vocab_size=len(vocabulary()))
    save_tokenizer(folder)
    pocket = Checkpoint.open(folder)
    alone = {name: parse(f"pocket:{name}", pocket, 6, 64) for name in ("arithmetic", "brackets")}
    both = parse("pocket:arithmetic,brackets", pocket, 12, 64)
    only = {
        name: set(flat(alone[name])) - set(flat(alone[other]))
        for name, other in zip(alone, reversed(alone), strict=True)
    }
    assert both.tokens >= 12 * 64
    assert all(only[name] & set(flat(both)) for name in alone), "a domain is missing from the joined corpus"
    with pytest.raises(UnknownNameError, match="arithmetic"):
        parse("pocket:arithmetik", pocket, 1, 8)


def test_pocket_language_is_refused_for_another_vocabulary(checkpoint):
    with pytest.raises(ConfigError, match="does not speak the pocket language"):
        parse("pocket", checkpoint, 1, 8)


def test_data_set_by_name_through_the_real_library(checkpoint, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    data = tmp_path / "data"
    data.mkdir()
    rows = [{"text": f"w{i} w{i} w{i}", "other": "w99"} for i in range(40)]
    (data / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    corpus = parse(f"datasets:{data}", checkpoint, sequences=5, length=8)
    ids = flat(corpus)
    assert corpus.tokens == 40
    assert ids[3] == 0 and len(set(ids[:3])) == 1, "documents are not separated by the end token"
    other = parse(f"datasets:{data}::train:other", checkpoint, sequences=2, length=4)
    assert set(flat(other)) == {100, 0}
    assert corpus.digest == parse(f"datasets:{data}", checkpoint, 5, 8).digest
    assert corpus.digest != parse(f"datasets:{data}", checkpoint, 5, 8, seed=1).digest
    with pytest.raises(UnknownNameError, match="'text'"):
        parse(f"datasets:{data}::train:txt", checkpoint, 1, 4)
    with pytest.raises(ConfigError, match="cannot be loaded"):
        parse(f"datasets:{tmp_path / 'absent'}", checkpoint, 1, 4)


@pytest.mark.parametrize("suffix", ["npy", "safetensors", "json"])
def test_raw_ids_are_replayed_exactly(checkpoint, tmp_path, suffix):
    ids = np.random.default_rng(0).integers(0, 160, (3, 7))
    path = tmp_path / f"ids.{suffix}"
    if suffix == "npy":
        np.save(path, ids.astype(np.int32))
    elif suffix == "safetensors":
        save_file({"input_ids": ids, "attention_mask": np.ones_like(ids)}, path)
    else:
        path.write_text(json.dumps(ids.tolist()))
    corpus = parse(str(path), checkpoint, sequences=1, length=2)
    assert [list(window) for window in corpus.windows] == ids.tolist()
    assert corpus.digest == Corpus.of(torch.from_numpy(ids)).digest == Corpus.of(ids.tolist()).digest


def test_digest_tells_windows_apart():
    digests = {Corpus.of(w).digest for w in ([[1, 2, 3, 4]], [[1, 2], [3, 4]], [[1], [2, 3, 4]], [[1, 2, 3, 5]])}
    assert len(digests) == 4


def test_clear_errors(checkpoint, tmp_path):
    (tmp_path / "short.txt").write_text("w1 w2 w3")
    with pytest.raises(ConfigError, match="0 windows of 8 tokens and 3 tokens more"):
        parse(str(tmp_path / "short.txt"), checkpoint, 1, 8)
    with pytest.raises(ConfigError, match="no such file; allowed"):
        parse("absent.txt", checkpoint, 1, 8)
    np.save(tmp_path / "large.npy", np.array([[1, 160]]))
    with pytest.raises(ConfigError, match="token id 160"):
        parse(str(tmp_path / "large.npy"), checkpoint, 1, 8)
    np.save(tmp_path / "cube.npy", np.zeros((2, 2, 2), dtype=np.int64))
    with pytest.raises(ConfigError, match=r"\[2, 2, 2\]"):
        parse(str(tmp_path / "cube.npy"), checkpoint, 1, 8)
    (tmp_path / "text.json").write_text('{"a": 1}')
    with pytest.raises(ConfigError, match="list of lists"):
        parse(str(tmp_path / "text.json"), checkpoint, 1, 8)
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    with pytest.raises(ConfigError, match="not text in UTF-8"):
        parse(str(tmp_path / "latin.txt"), checkpoint, 1, 8)
    with pytest.raises(ConfigError, match="at least one window"):
        parse("a+b", checkpoint, 1, 8)
    bare = Checkpoint.open(tiny_checkpoint("mixtral", tmp_path / "bare"))
    with pytest.raises(ConfigError, match="has no tokenizer"):
        parse(str(tmp_path / "short.txt"), bare, 1, 2)


@pytest.mark.parametrize("windows", [[], [[]], [[-1, 2]], [[1.5]], [[[1]]]])
def test_windows_that_are_not_token_ids_are_refused(windows):
    with pytest.raises(ConfigError):
        Corpus.of(windows)


def test_windows_longer_than_the_model_was_made_for_are_refused(checkpoint, tmp_path):
    positions = checkpoint.config["max_position_embeddings"]
    np.save(tmp_path / "ids.npy", np.ones((1, positions), dtype=np.int64))
    assert parse(str(tmp_path / "ids.npy"), checkpoint, 1, 1).tokens == positions
    np.save(tmp_path / "ids.npy", np.ones((1, positions + 1), dtype=np.int64))
    with pytest.raises(ConfigError, match=f"windows of {positions + 1} tokens.*at most {positions}"):
        parse(str(tmp_path / "ids.npy"), checkpoint, 1, 1)


def test_names_that_no_file_can_have_are_an_error(checkpoint):
    with pytest.raises(ConfigError, match="name too long"):
        parse("x" * 5000, checkpoint, 1, 1)
