"""A small random dense model that reads the pocket language."""

from __future__ import annotations

from pathlib import Path

from bench.pocket.language.lexicon import vocabulary
from bench.pocket.tokenizer import save_tokenizer
from tests.support.tiny import tiny_checkpoint


def dense_pocket(folder: Path) -> Path:
    """Write a Mistral with the pocket tokenizer to ``folder`` and return it."""
    made = tiny_checkpoint("mistral", folder, vocab_size=len(vocabulary()))
    save_tokenizer(made)
    return made
