"""The tokenizer of a checkpoint, which is loaded as it is or not at all: never another one in its place, never an empty one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from methods.framework.errors import CheckpointError
from methods.framework.outside import an_object, read_json

_OWN_MODULES = "transformers_modules"
"""Package in which transformers puts code that lies beside a model."""


def open_tokenizer(folder: Path, trust_remote_code: bool = False) -> Any:
    """Return the tokenizer that lies in ``folder``, which may run Python code of its own where ``trust_remote_code`` says so.

    Raises:
        CheckpointError: there is none that loads, it needs code that is not trusted or not there, or it knows no words.
    """
    from transformers import AutoTokenizer

    code = own_code(folder)
    if code is not None and not trust_remote_code:
        # Transformers would take a class of its own that goes by the model's type, and say nothing.
        raise CheckpointError(
            f"the tokenizer in {folder} is made by Python code of its own ({code}), which is not run here, and another one "
            "in its place would read other tokens; read the code and give --trust-remote-code (trust_remote_code: true), or "
            "have it saved as tokenizer.json by a library that runs it and take auto_map out of tokenizer_config.json; or give "
            "files of token ids"
        )
    if code is not None and not _lies_beside(code, folder):
        raise CheckpointError(
            f"the tokenizer in {folder} names the code {code}, which does not lie there, so that nothing tells when it "
            "changes; copy its .py files into the folder and name the class as FILE.CLASS in auto_map"
        )
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=code is not None)
    except Exception as error:  # tokenizer files fail in many ways, with errors of their own libraries
        reason = str(error).strip().splitlines()
        told = f"{folder} has no tokenizer that loads ({reason[0] if reason else type(error).__name__}); "
        remedy = "copy tokenizer.json and tokenizer_config.json of the model into it"
        raise CheckpointError(told + (f"its own code is {code}" if code else remedy)) from error
    if code is not None and type(tokenizer).__module__.split(".")[0] != _OWN_MODULES:
        raise CheckpointError(
            f"the tokenizer in {folder} is to be made by {code}, but transformers takes {type(tokenizer).__name__} of its own; "
            "name a class under auto_map in tokenizer_config.json as [null, FILE.CLASS] where it is a fast one"
        )
    if not set(tokenizer.get_vocab()) - set(tokenizer.all_special_tokens) - set(tokenizer.get_added_vocab()):
        raise CheckpointError(
            f"the tokenizer in {folder} knows no words, so every text would be empty; its vocabulary is missing: copy "
            "tokenizer.json (or vocab.json and merges.txt, or tokenizer.model) of the model into the folder"
        )
    return tokenizer


def own_code(folder: Path) -> str | None:
    """Return what names the Python class of the tokenizer, as FILE.CLASS, where it is none of transformers'."""
    for name in ("tokenizer_config.json", "config.json"):
        path = folder / name
        if not path.exists():
            continue
        stated = an_object(read_json(path, CheckpointError, infinite=True), str(path), CheckpointError).get("auto_map")
        if isinstance(stated, Mapping) and (named := stated.get("AutoTokenizer")):
            classes = named if isinstance(named, list) else [named]
            return ", ".join(str(one) for one in classes if one is not None)[:120] or None
    return None


def _lies_beside(code: str, folder: Path) -> bool:
    """Return whether all classes that ``code`` names are in files of the folder itself, which its content covers."""
    files = [name.rpartition(".")[0] for name in code.split(", ")]
    return all(name.isidentifier() and (folder / f"{name}.py").is_file() for name in files)
