"""The tokenizer of a checkpoint, which is loaded as it is or not at all: never another one in its place, never an empty one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from methods.framework.errors import CheckpointError
from methods.framework.outside import an_object, read_json

_OWN_MODULES = "transformers_modules"
"""Package in which transformers puts code that lies beside a model."""
_VOCABULARIES = ("tokenizer.json", "tekken.json", "vocab*", "*.model", "*.tiktoken", "*.bpe")
"""Names of files that hold a vocabulary, in the formats that there are."""
_PIECES = "tokenizer.model"
_READ = ("the boy reads a book", "where is it ? in 1 of 20 rooms .")
"""Plain words, one space between them: what all readers of a sentencepiece model agree on."""


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
        if not _vocabularies(folder):
            raise _without_words(folder) from error
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
        raise _without_words(folder)
    return tokenizer if code is not None else _as_its_pieces(tokenizer, folder)


def _vocabularies(folder: Path) -> list[str]:
    """Return the names of the files in ``folder`` that hold a vocabulary."""
    return sorted({path.name for name in _VOCABULARIES for path in folder.glob(name) if path.is_file()})


def _without_words(folder: Path) -> CheckpointError:
    found = ", ".join(_vocabularies(folder))
    return CheckpointError(
        f"the tokenizer in {folder} knows no words, so every text would be empty; its vocabulary is missing "
        f"({f'there is {found} alone' if found else 'there is no file of one'}): copy tokenizer.json (or vocab.json and "
        "merges.txt, tokenizer.model, or its .tiktoken file) of the model into the folder"
    )


def _as_its_pieces(tokenizer: Any, folder: Path) -> Any:
    """Return ``tokenizer``, or one of the class that the folder states, whichever reads as the sentencepiece model there does.

    Transformers makes a fast tokenizer of the model's pieces by rules of its own, and for some types of models passes over the
    class that is stated; the ids are then those of other pieces, without an error.

    Raises:
        CheckpointError: neither reads as the sentencepiece model.
    """
    import transformers

    file = folder / _PIECES
    if not file.is_file() or (folder / "tokenizer.json").exists():
        return tokenizer
    try:
        from sentencepiece import SentencePieceProcessor

        pieces = SentencePieceProcessor(model_file=str(file))
    except (ImportError, RuntimeError, OSError):  # not installed, or the file is in the format of tiktoken
        return tokenizer
    if _reads_as(tokenizer, pieces):
        return tokenizer
    stated = _stated(folder / "tokenizer_config.json").get("tokenizer_class")
    own = getattr(transformers, stated.removesuffix("Fast"), None) if isinstance(stated, str) else None
    if own is not None:
        try:
            other = own.from_pretrained(folder)
        except Exception:  # as above; what was loaded first is then all that there is
            other = None
        if other is not None and _reads_as(other, pieces):
            return other
    raise CheckpointError(
        f"transformers reads other pieces than {file} holds ({type(tokenizer).__name__} for {stated or 'no stated class'}), so "
        "that the model would get other tokens than in its training; copy tokenizer.json of the model into the folder, or have "
        "it saved by the library that the model came with"
    )


def _reads_as(tokenizer: Any, pieces: Any) -> bool:
    """Return whether a tokenizer cuts plain words as a sentencepiece model does, as far as that knows their letters."""
    for text in _READ:
        ids = pieces.encode(text)
        if pieces.unk_id() in ids:
            continue
        found = tokenizer.convert_ids_to_tokens(tokenizer(text, add_special_tokens=False)["input_ids"])
        if found != [pieces.id_to_piece(one) for one in ids]:
            return False
    return True


def _stated(path: Path) -> Mapping[str, Any]:
    """Return the content of a JSON file, nothing where there is none."""
    if not path.exists():
        return {}
    return an_object(read_json(path, CheckpointError, infinite=True), str(path), CheckpointError)


def own_code(folder: Path) -> str | None:
    """Return what names the Python class of the tokenizer, as FILE.CLASS, where it is none of transformers'."""
    for name in ("tokenizer_config.json", "config.json"):
        stated = _stated(folder / name).get("auto_map")
        if isinstance(stated, Mapping) and (named := stated.get("AutoTokenizer")):
            classes = named if isinstance(named, list) else [named]
            return ", ".join(str(one) for one in classes if one is not None)[:120] or None
    return None


def _lies_beside(code: str, folder: Path) -> bool:
    """Return whether all classes that ``code`` names are in files of the folder itself, which its content covers."""
    files = [name.rpartition(".")[0] for name in code.split(", ")]
    return all(name.isidentifier() and (folder / f"{name}.py").is_file() for name in files)
