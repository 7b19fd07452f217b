"""Tokenizer folders in the formats that models come with: read as their own libraries read them, or refused by name."""

from __future__ import annotations

import base64
import io
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import tiktoken

from bench.checkpoint.tokenizer_files import open_tokenizer
from bench.pocket import pocket_path
from methods.framework.errors import CheckpointError

TEXT = "the boy reads the book ."
LINES = (TEXT, "where is the book ? in a room .", "it is in 1 of 20 rooms .", "a girl reads .")
RANKS = {bytes([value]): value for value in range(256)} | {
    word.encode(): 256 + index for index, word in enumerate(("th", "the", " b", " bo", "oy", " the"))
}
PATTERN = r" ?\S+|\s+"
CODE = f'''import tiktoken
from tiktoken.load import load_tiktoken_bpe
from transformers import PreTrainedTokenizer


class OwnTokenizer(PreTrainedTokenizer):
    vocab_files_names = {{"vocab_file": "words.tiktoken"}}

    def __init__(self, vocab_file, **settings):
        ranks = load_tiktoken_bpe(vocab_file)
        self.core = tiktoken.Encoding("own", pat_str=r"{PATTERN}", mergeable_ranks=ranks, special_tokens={{}})
        self.names = {{index: token.decode("latin-1") for token, index in ranks.items()}}
        self.places = {{name: index for index, name in self.names.items()}}
        super().__init__(eos_token="<end>", **settings)

    @property
    def vocab_size(self):
        return len(self.names)

    def get_vocab(self):
        return self.places | self.added_tokens_encoder

    def _tokenize(self, text, **settings):
        return [self.names[index] for index in self.core.encode_ordinary(text)]

    def _convert_token_to_id(self, token):
        return self.places[token]

    def _convert_id_to_token(self, index):
        return self.names[index]
'''


@pytest.fixture(scope="module")
def pieces() -> bytes:
    """A sentencepiece model of a few words."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(LINES * 20), model_writer=model, vocab_size=60, model_type="bpe", minloglevel=2
    )
    return model.getvalue()


def of_ranks() -> bytes:
    """Return the same ranks as a file of tiktoken."""
    return "".join(f"{base64.b64encode(token).decode()} {rank}\n" for token, rank in RANKS.items()).encode()


def folder_of(folder: Path, stated: dict[str, Any], files: dict[str, bytes], kind: str = "mixtral") -> Path:
    """Return a folder with a config, what the tokenizer states of itself, and ``files``."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": kind}))
    (folder / "tokenizer_config.json").write_text(json.dumps(stated))
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


def ids(tokenizer: Any, text: str = TEXT) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def test_sentencepiece_models_are_read_as_sentencepiece_reads_them(tmp_path: Path, pieces: bytes) -> None:
    own = sentencepiece.SentencePieceProcessor(model_proto=pieces)
    stated = folder_of(tmp_path / "stated", {"tokenizer_class": "LlamaTokenizer"}, {"tokenizer.model": pieces})
    for text in LINES:
        assert ids(open_tokenizer(stated), text) == own.encode(text)
    silent = folder_of(tmp_path / "silent", {}, {"tokenizer.model": pieces})
    with pytest.raises(CheckpointError, match=r"reads other pieces than .*tokenizer\.model holds .*no stated class"):
        open_tokenizer(silent)
    other = folder_of(tmp_path / "other", {"tokenizer_class": "BertTokenizer"}, {"tokenizer.model": pieces})
    with pytest.raises(CheckpointError, match=r"reads other pieces .*BertTokenizer"):
        open_tokenizer(other)


def test_a_fast_tokenizer_beside_a_sentencepiece_model_is_taken_as_it_is(tmp_path: Path, pieces: bytes) -> None:
    fast = (pocket_path("pocket-mixtral") / "tokenizer.json").read_bytes()
    files = {"tokenizer.json": fast, "tokenizer.model": pieces}
    folder = folder_of(tmp_path / "both", {"tokenizer_class": "PreTrainedTokenizerFast"}, files)
    assert ids(open_tokenizer(folder)) == ids(open_tokenizer(pocket_path("pocket-mixtral")))


def test_ranks_of_tiktoken_are_read_with_and_without_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.syspath_prepend(str(tmp_path / "modules"))
    for name in [name for name in sys.modules if name.split(".")[0] == "transformers_modules"]:
        monkeypatch.delitem(sys.modules, name)
    own = tiktoken.Encoding("own", pat_str=PATTERN, mergeable_ranks=RANKS, special_tokens={})
    stated = {"tokenizer_class": "OwnTokenizer", "auto_map": {"AutoTokenizer": ["tokenization_own.OwnTokenizer", None]}}
    files = {"words.tiktoken": of_ranks(), "tokenization_own.py": CODE.encode()}
    folder = folder_of(tmp_path / "own", stated, files, "deepseek_v3")
    with pytest.raises(CheckpointError, match="give --trust-remote-code"):
        open_tokenizer(folder)
    assert ids(open_tokenizer(folder, trust_remote_code=True)) == own.encode_ordinary(TEXT)
    (folder / "words.tiktoken").unlink()
    with pytest.raises(CheckpointError, match=r"there is no file of one.*its \.tiktoken file"):
        open_tokenizer(folder, trust_remote_code=True)
    plain = folder_of(
        tmp_path / "plain", {"tokenizer_class": "PreTrainedTokenizerFast"}, {"tokenizer.model": of_ranks()}
    )
    assert len(ids(open_tokenizer(plain))) < len(TEXT), "bytes are joined by rank"


@pytest.mark.parametrize(
    ("stated", "files", "words"),
    [
        ("LlamaTokenizer", {}, "knows no words.*there is no file of one"),
        ("Qwen2Tokenizer", {}, "knows no words.*there is no file of one"),
        ("Qwen2Tokenizer", {"vocab.json": b"{}"}, r"has no tokenizer that loads|there is vocab\.json alone"),
        ("LlamaTokenizer", {"tokenizer.model": b"\x0e\x00cut"}, "has no tokenizer that loads"),
        ("PreTrainedTokenizerFast", {"tokenizer.json": b"{}"}, "has no tokenizer that loads"),
    ],
)
def test_missing_and_damaged_vocabularies_are_refused(
    tmp_path: Path, stated: str, files: dict[str, bytes], words: str
) -> None:
    folder = folder_of(tmp_path / "model", {"tokenizer_class": stated}, files, "qwen3_moe")
    with pytest.raises(CheckpointError, match=words):
        open_tokenizer(folder)
