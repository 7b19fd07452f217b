"""The tokenizer of a checkpoint, which is loaded as it is or not at all: never another one in its place, never an empty one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from methods.framework.errors import CheckpointError
from methods.framework.outside import an_object, read_json


def open_tokenizer(folder: Path) -> Any:
    """Return the tokenizer that lies in ``folder``.

    Raises:
        CheckpointError: there is none that loads, it needs code of its own, or it knows no words.
    """
    from transformers import AutoTokenizer

    if (code := _own_code(folder)) is not None:
        # Transformers would take a class of its own that goes by the model's type, and say nothing.
        raise CheckpointError(
            f"the tokenizer in {folder} is made by Python code of its own ({code}), which is not run here, and another one "
            "in its place would read other tokens. Have it saved as tokenizer.json by a library that runs this code, and "
            "take auto_map out of tokenizer_config.json; or give files of token ids"
        )
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder)
    except Exception as error:  # tokenizer files fail in many ways, with errors of their own libraries
        reason = str(error).strip().splitlines()
        raise CheckpointError(
            f"{folder} has no tokenizer that loads ({reason[0] if reason else type(error).__name__}); copy "
            "tokenizer.json and tokenizer_config.json of the model into it"
        ) from error
    if not set(tokenizer.get_vocab()) - set(tokenizer.all_special_tokens) - set(tokenizer.get_added_vocab()):
        raise CheckpointError(
            f"the tokenizer in {folder} knows no words, so every text would be empty; its vocabulary is missing: copy "
            "tokenizer.json (or vocab.json and merges.txt, or tokenizer.model) of the model into the folder"
        )
    return tokenizer


def _own_code(folder: Path) -> str | None:
    """Return what names the Python class of the tokenizer, where it is none of transformers'."""
    for name in ("tokenizer_config.json", "config.json"):
        path = folder / name
        if not path.exists():
            continue
        stated = an_object(read_json(path, CheckpointError, infinite=True), str(path), CheckpointError).get("auto_map")
        if isinstance(stated, Mapping) and stated.get("AutoTokenizer"):
            return str(stated["AutoTokenizer"])[:120]
    return None
