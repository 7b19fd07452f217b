"""Corpora: windows of token ids from text, a ``datasets`` name, the pocket language, or files of raw ids."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bench.checkpoint.tokenizer_files import open_tokenizer
from methods.framework.errors import ConfigError, UnknownNameError
from methods.framework.outside import read_json

if TYPE_CHECKING:
    from bench.checkpoint.checkpoint import Checkpoint

FORMS = (
    "a text file, a file of token ids (.npy, .safetensors, .json), datasets:NAME[:CONFIG][:SPLIT][:FIELD], "
    "pocket[:domain,domain], or several of them joined by +"
)
_PIECE = 1 << 16
"""Characters of text that stay together when a text file is shuffled."""
_ID_FILES = (".npy", ".safetensors", ".json")


@dataclass(frozen=True, eq=False)
class Corpus:
    """Token ids to measure on.

    Args:
        name: how it was asked for.
        windows: token ids of each sequence; lengths may differ.
        digest: SHA-256 of lengths and ids.
        tokens: number of ids in all windows.
    """

    name: str
    windows: tuple[tuple[int, ...], ...]
    digest: str
    tokens: int

    @classmethod
    def of(cls, windows: Iterable[Sequence[int]], name: str = "token ids") -> Corpus:
        """Return the corpus of these windows; rows of a tensor or array will do.

        Raises:
            ConfigError: no window, an empty one, or an id that is not a non-negative whole number.
        """
        kept: list[tuple[int, ...]] = []
        hasher = hashlib.sha256()
        for window in windows:
            row = np.asarray(window)
            if row.ndim != 1 or not len(row) or row.dtype.kind not in "iu" or int(row.min()) < 0:
                raise ConfigError(
                    f"corpus {name}: window {len(kept)} is not a non-empty row of non-negative token ids, but "
                    f"{row.dtype} of shape {list(row.shape)}"
                )
            hasher.update(len(row).to_bytes(8, "little") + row.astype("<i8").tobytes())
            kept.append(tuple(row.tolist()))
        if not kept:
            raise ConfigError(f"corpus {name} holds no tokens")
        return cls(name, tuple(kept), hasher.hexdigest(), sum(map(len, kept)))


def parse(spec: str, checkpoint: Checkpoint, sequences: int, length: int, seed: int = 0) -> Corpus:
    """Return the corpus that ``spec`` names.

    Args:
        spec: one source or several joined by ``+``, which get equal shares of ``sequences`` (the first ones get what is
            left over). Files of token ids are replayed whole and exactly, whatever is asked for.
        checkpoint: whose tokenizer and vocabulary are used.
        sequences: windows in total.
        length: tokens in a window.
        seed: chooses the windows where a source has more than are wanted.

    Raises:
        ConfigError: a source is missing, unreadable, too short, or does not fit the model.
    """
    try:
        sources = [spec] if Path(spec).exists() else spec.split("+")
    except OSError as error:  # a name that no file can have
        raise ConfigError(f"corpus {spec[:200]!r}: {error.strerror}; allowed: {FORMS}") from error
    if sequences < len(sources) or length < 1:
        raise ConfigError(
            f"{sequences} windows of {length} tokens cannot be drawn from {len(sources)} source(s) of {spec!r}; "
            "ask for at least one window for each source"
        )
    windows: list[Sequence[int]] = []
    for number, source in enumerate(sources):
        share = sequences // len(sources) + (number < sequences % len(sources))
        windows += _windows(source.strip(), checkpoint, share, length, seed)
    corpus = Corpus.of(windows, spec)
    longest, positions = max(map(len, corpus.windows)), checkpoint.config.get("max_position_embeddings")
    if positions is not None and longest > positions:
        raise ConfigError(
            f"corpus {spec!r} has a window of {longest} tokens; {checkpoint.name} was made for at most {positions} "
            "(max_position_embeddings), and what it does beyond that says nothing. Ask for shorter windows"
        )
    highest = max(map(max, corpus.windows))
    if highest >= checkpoint.inventory.vocab:
        raise ConfigError(
            f"corpus {spec!r} holds token id {highest}; {checkpoint.name} knows 0 to {checkpoint.inventory.vocab - 1}: "
            "the ids are of another tokenizer"
        )
    return corpus


def _windows(source: str, checkpoint: Checkpoint, sequences: int, length: int, seed: int) -> Sequence[Sequence[int]]:
    kind, _, rest = source.partition(":")
    if kind == "pocket":
        return _pocket(rest, checkpoint, sequences, length, seed)
    if kind == "datasets":
        encode, end = _tokenizer(checkpoint)
        documents = _dataset(rest, seed)
        return _packed(source, ([*encode(text), *end] for text in documents), sequences, length)
    path = Path(source)
    if not path.is_file():
        raise ConfigError(f"corpus {source!r}: there is no such file; allowed: {FORMS}")
    if path.suffix in _ID_FILES:
        return _raw_ids(path)
    encode, _ = _tokenizer(checkpoint)
    return _packed(source, map(encode, _pieces(path, seed)), sequences, length)


def _packed(source: str, streams: Iterable[Sequence[int]], sequences: int, length: int) -> list[Sequence[int]]:
    """Cut a stream of ids into windows and stop when there are enough."""
    windows: list[Sequence[int]] = []
    rest: list[int] = []
    for ids in streams:
        rest.extend(ids)
        whole = min(len(rest) // length, sequences - len(windows))
        windows += [rest[start : start + length] for start in range(0, whole * length, length)]
        if len(windows) == sequences:
            return windows
        del rest[: whole * length]
    raise ConfigError(
        f"corpus {source!r} is too short: it gives {len(windows)} windows of {length} tokens and {len(rest)} tokens more, "
        f"{sequences} windows were asked for; lower --sequences or --length, or add text"
    )


def _pieces(path: Path, seed: int) -> Iterator[str]:
    """Yield a text file in pieces that end at line ends, in an order that the seed chooses."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"corpus {path} is not UTF-8 text ({error.reason} at byte {error.start}); convert it"
        ) from None
    pieces: list[list[str]] = [[]]
    size = 0
    for line in lines:
        if size >= _PIECE:
            pieces.append([])
            size = 0
        pieces[-1].append(line)
        size += len(line)
    random.Random(f"corpus {seed}").shuffle(pieces)
    return ("".join(piece) for piece in pieces)


def _tokenizer(checkpoint: Checkpoint) -> tuple[Callable[[str], list[int]], list[int]]:
    """Return the checkpoint's encoder, without special tokens, and the ids that separate documents."""
    if not checkpoint.tokenizer_files:
        raise ConfigError(
            f"{checkpoint.path} has no tokenizer, which text must be read with; copy the model's tokenizer files there or "
            "give a file of token ids"
        )
    tokenizer = open_tokenizer(checkpoint.path)
    end = [] if tokenizer.eos_token_id is None else [int(tokenizer.eos_token_id)]

    def encode(text: str) -> list[int]:
        # verbose=False: pieces are longer than the model's window on purpose, they are cut afterwards.
        return list(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])

    return encode, end


def _dataset(rest: str, seed: int) -> Iterator[str]:
    """Yield the documents of a data set, streamed and shuffled within a buffer."""
    import datasets

    name, config, split, field = (*rest.split(":"), "", "", "")[:4]
    if not name:
        raise ConfigError(
            f"corpus 'datasets:{rest}' names no data set; the form is datasets:NAME[:CONFIG][:SPLIT][:FIELD]"
        )
    try:
        rows = datasets.load_dataset(name, config or None, split=split or "train", streaming=True)
        first = next(iter(rows))
    except StopIteration:
        raise ConfigError(f"data set {name} has no rows in split {split or 'train'}") from None
    except Exception as error:  # the library raises errors of many kinds, some of them of its own dependencies
        raise ConfigError(
            f"data set {name} ({config or 'default'}, {split or 'train'}) cannot be loaded: {error}"
        ) from error
    column = field or "text"
    if column not in first:
        raise UnknownNameError(
            f"field of data set {name}", column, first, "Name it as datasets:NAME:CONFIG:SPLIT:FIELD."
        )
    shuffled: Iterable[dict[str, Any]] = rows.shuffle(seed=seed, buffer_size=1000)
    return (str(row[column]) for row in shuffled)


def _pocket(rest: str, checkpoint: Checkpoint, sequences: int, length: int, seed: int) -> Sequence[Sequence[int]]:
    from bench import pocket

    domains = tuple(rest.split(",")) if rest else pocket.DOMAINS
    for domain in domains:
        if domain not in pocket.DOMAINS:
            raise UnknownNameError("pocket domain", domain, pocket.DOMAINS)
    _check_pocket_vocabulary(checkpoint)
    try:
        return pocket.corpus(domains=domains, seed=seed, tokens=sequences * length, length=length)
    except ValueError as error:
        raise ConfigError(f"corpus pocket:{rest}: {error}") from error


def _check_pocket_vocabulary(checkpoint: Checkpoint) -> None:
    """Refuse a model that reads other words than the pocket language's; one without a tokenizer is taken on trust."""
    from bench.pocket.language.lexicon import vocabulary

    path = checkpoint.path / "tokenizer.json"
    if path.exists() and json.loads(path.read_bytes())["model"].get("vocab") != dict(vocabulary()):
        raise ConfigError(
            f"{checkpoint.name} does not speak the pocket language: its tokenizer has another vocabulary; "
            "calibrate it on a text file or a data set"
        )


def _raw_ids(path: Path) -> Sequence[Sequence[int]]:
    """Return the rows of a file of token ids."""
    try:
        if path.suffix == ".npy":
            found = np.load(path, allow_pickle=False)
        elif path.suffix == ".json":
            found = read_json(path, ConfigError)
        else:
            found = _single_tensor(path)
    except ConfigError:
        raise
    except (Exception, MemoryError) as error:  # numpy parses headers as Python, whose tokenizer has errors of its own
        raise ConfigError(f"token ids in {path} cannot be read: {error}") from error
    if isinstance(found, np.ndarray):
        if found.ndim != 2:
            raise ConfigError(f"token ids in {path} have shape {list(found.shape)}; allowed: sequences x length")
    elif not (isinstance(found, list) and all(isinstance(row, list) for row in found)):
        raise ConfigError(f"token ids in {path} must be a list of lists, one for each sequence")
    return list(found)


def _single_tensor(path: Path) -> Any:
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        tensors = load_file(path)
    except SafetensorError as error:
        raise ConfigError(f"token ids in {path} cannot be read: {error}") from error
    if len(tensors) != 1 and "input_ids" not in tensors:
        raise ConfigError(f"{path} holds tensors {', '.join(sorted(tensors))}; allowed: one, or one called input_ids")
    return tensors["input_ids"] if "input_ids" in tensors else next(iter(tensors.values()))
