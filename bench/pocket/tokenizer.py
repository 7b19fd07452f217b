"""The tokenizer: one token a word, words apart by white space."""

from __future__ import annotations

from pathlib import Path

from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from bench.pocket.language.lexicon import BOUNDARY, PAD, UNKNOWN, vocabulary


def build_tokenizer(max_length: int = 512) -> PreTrainedTokenizerFast:
    """Return the tokenizer of the language; it adds no token of its own to a text."""
    words = Tokenizer(models.WordLevel(dict(vocabulary()), unk_token=UNKNOWN))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=words,
        bos_token=BOUNDARY,
        eos_token=BOUNDARY,
        pad_token=PAD,
        unk_token=UNKNOWN,
        model_max_length=max_length,
        clean_up_tokenization_spaces=False,
    )


def save_tokenizer(folder: Path) -> None:
    """Write ``tokenizer.json`` and ``tokenizer_config.json`` into a folder."""
    build_tokenizer().save_pretrained(folder)
