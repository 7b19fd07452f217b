"""Corpora: windows of token ids from text, a ``datasets`` name, the pocket language, or files of raw ids."""

from __future__ import annotations

import hashlib
import json
import random
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bench.settings.mixture import shares_of, windows_of
from bench.settings.stage_settings import Bos
from bench.text.apart import Apart, mark_of
from bench.text.cutting import Marked, opened, packed
from bench.text.encoder import MASKS, Encoder
from bench.text.instructions import instruction_texts
from bench.text.pieces import LONGEST, pieces
from bench.text.template import SILENT, Talk
from methods.framework.errors import ConfigError, UnknownNameError
from methods.framework.outside import parse_json, read_text

if TYPE_CHECKING:
    from bench.checkpoint.checkpoint import Checkpoint

FORMS = (
    "a text file, a file of token ids (.npy, .safetensors, .json), datasets:NAME[:CONFIG][:SPLIT][:FIELD], "
    "pocket[:domain,domain], chat:FILE (.jsonl with messages), instructions:FILE[:TEMPLATE] (.jsonl with "
    "instruction and output), several of them joined by +, or with shares of the windows "
    "as SOURCE=0.5,SOURCE=0.5"
)
_ID_FILES = (".npy", ".safetensors", ".json")
_TALKS = ("chat:", "datasets:")
"""Beginnings of sources that may hold conversations."""


@dataclass(frozen=True, eq=False)
class Corpus:
    """Token ids to measure on.

    Args:
        name: how it was asked for.
        windows: token ids of each sequence; lengths may differ.
        digest: SHA-256 of lengths and ids.
        tokens: number of ids in all windows.
        opening: ids that were put at the start of every window, as evaluation puts them there.
        sources: of a mixture, each source with the number of its windows.
        marks: for each window, which of its tokens statistics count; None: all. They are part of the digest.
        documents: marks of the documents that it was cut from, where it was cut from documents.
        talk: what its conversations got beside their turns.
    """

    name: str
    windows: tuple[tuple[int, ...], ...]
    digest: str
    tokens: int
    opening: tuple[int, ...] = ()
    sources: tuple[tuple[str, int], ...] = ()
    marks: tuple[tuple[bool, ...], ...] | None = None
    documents: frozenset[bytes] = frozenset()
    talk: Talk = SILENT

    @property
    def counted(self) -> int:
        """Number of ids that statistics count."""
        return self.tokens if self.marks is None else sum(map(sum, self.marks))

    @classmethod
    def of(
        cls,
        windows: Iterable[Sequence[int]],
        name: str = "token ids",
        marks: Iterable[Sequence[bool]] | None = None,
    ) -> Corpus:
        """Return the corpus of these windows; rows of a tensor or array will do.

        Args:
            windows: token ids of each sequence.
            name: how it was asked for.
            marks: for each window, which of its tokens statistics count; None: all.

        Raises:
            ConfigError: no window, an empty one, an id that is not a non-negative whole number, or marks that do not fit.
        """
        kept: list[tuple[int, ...]] = []
        hasher = hashlib.sha256()
        for window in windows:
            try:
                row = np.asarray(window)
            except ValueError as error:
                raise ConfigError(f"corpus {name}: window {len(kept)} is not a row of token ids: {error}") from None
            if row.ndim != 1 or not len(row) or row.dtype.kind not in "iu" or int(row.min()) < 0:
                raise ConfigError(
                    f"corpus {name}: window {len(kept)} is not a non-empty row of non-negative token ids, but "
                    f"{row.dtype} of shape {list(row.shape)}"
                )
            hasher.update(len(row).to_bytes(8, "little") + row.astype("<i8").tobytes())
            kept.append(tuple(row.tolist()))
        if not kept:
            raise ConfigError(f"corpus {name} holds no tokens")
        corpus = cls(name, tuple(kept), hasher.hexdigest(), sum(map(len, kept)))
        return corpus if marks is None else corpus._counting(tuple(tuple(map(bool, row)) for row in marks))

    def _counting(self, marks: tuple[tuple[bool, ...], ...]) -> Corpus:
        """Return this text with ``marks``."""
        if [len(row) for row in marks] != [len(window) for window in self.windows]:
            raise ConfigError(f"corpus {self.name}: marks of the tokens that count do not fit its windows one by one")
        if not any(map(any, marks)):
            raise ConfigError(f"corpus {self.name}: no token of its windows counts; add windows, or count every token")
        digest = hashlib.sha256(f"{self.digest} of which count ".encode() + b"".join(map(bytes, marks))).hexdigest()
        return replace(self, digest=digest, marks=marks)


def parse(
    spec: str,
    checkpoint: Checkpoint,
    sequences: int,
    length: int,
    seed: int = 0,
    bos: Bos = "as evaluated",
    answers_only: bool = False,
    apart: Apart | None = None,
    talk: Talk | None = None,
) -> Corpus:
    """Return the corpus that ``spec`` names.

    Args:
        spec: one source or several joined by ``+``, which get equal shares of ``sequences`` (the first ones get what is
            left over), or a mixture ``source=share,source=share``. Files of token ids are replayed whole and in order,
            whatever is asked for, so they have no part in mixtures.
        checkpoint: whose tokenizer and vocabulary are used.
        sequences: windows in total.
        length: tokens in a window, with what it begins with. A window of a file of token ids that does not begin with it
            gets it in front and keeps all of its own.
        seed: chooses the windows where a source has more than are wanted.
        bos: whether windows begin with the tokenizer's beginning of a sequence.
        answers_only: whether only tokens of answers count, as the chat template marks them; all sources are conversations.
        apart: what the same study reads already. Windows of a text file that share a passage with it are passed over, and
            documents that it holds.
        talk: what conversations get beside their turns; None: nothing.

    Raises:
        ConfigError: a source is missing, unreadable, too short, or does not fit the model; or no source is of conversations
            and ``talk`` says something.
    """
    sources, mixed = _sources(spec, sequences, length)
    talk = talk or SILENT
    if not talk.silent and not has_conversations(spec):
        raise ConfigError(
            f"corpus {spec!r} holds no conversations, so that a system's turn or an argument of the chat template would change "
            f"nothing; leave them out, or name one of {', '.join(_TALKS)}"
        )
    encoder = Encoder(checkpoint, talk)
    opening = encoder.opening(bos)
    if length <= len(opening):
        raise ConfigError(
            f"windows of {length} tokens hold nothing beside the {len(opening)} that each begins with; raise --length"
        )
    windows: list[Marked] = []
    read: set[bytes] = set()
    for source, share in sources:
        windows += _Source(source.strip(), checkpoint, encoder, opening, seed, answers_only, apart, read).windows(
            share, length
        )
    marks = [window.marks for window in windows] if answers_only else None
    corpus = Corpus.of((window.ids for window in windows), spec, marks)
    corpus = replace(corpus, opening=opening, sources=tuple(sources) if mixed else ())
    corpus = replace(corpus, documents=frozenset(read), talk=talk)
    _check_fit(corpus, checkpoint)
    return corpus


def has_conversations(spec: str) -> bool:
    """Tell whether a source of a corpus may hold conversations."""
    return any(source.strip().startswith(_TALKS) for source in re.split(r"[+,]", spec))


def replayed(spec: str) -> bool:
    """Tell whether a corpus is of files of token ids alone, which are read whole whatever the seed."""
    return all(source.strip().endswith(_ID_FILES) for source in spec.split("+"))


def _sources(spec: str, sequences: int, length: int) -> tuple[list[tuple[str, int]], bool]:
    """Return the sources, each with the number of its windows, and whether they have shares."""
    try:
        mixture = () if Path(spec).exists() else shares_of(spec)
    except OSError as error:  # a name that no file can have
        raise ConfigError(f"corpus {spec[:200]!r}: {error.strerror}; allowed: {FORMS}") from error
    except ValueError as error:
        raise ConfigError(str(error)) from None
    if mixture:
        sources = [source for source, _ in mixture]
        counts = windows_of([share for _, share in mixture], sequences)
        if of_ids := [source for source in sources if source.endswith(_ID_FILES)]:
            raise ConfigError(
                f"corpus {spec!r}: {of_ids[0]} is a file of token ids, which is replayed whole and so has no share; join it "
                "with +"
            )
        if len(set(sources)) < len(sources):
            raise ConfigError(f"corpus {spec!r} names a source twice; add up its shares")
    else:
        sources = [spec] if Path(spec).exists() else spec.split("+")
        counts = [sequences // len(sources) + (number < sequences % len(sources)) for number in range(len(sources))]
    if min(counts) < 1 or length < 1:
        raise ConfigError(
            f"{sequences} windows of {length} tokens cannot be drawn from {len(sources)} source(s) of {spec!r}; "
            "ask for at least one window for each source"
        )
    return list(zip(sources, counts, strict=True)), bool(mixture)


def _check_fit(corpus: Corpus, checkpoint: Checkpoint) -> None:
    """Refuse tokens that the model does not know, and windows that are longer than what it reads."""
    highest = max(map(max, corpus.windows))
    if highest >= checkpoint.inventory.vocab:
        raise ConfigError(
            f"corpus {corpus.name!r} holds token id {highest}; {checkpoint.name} knows 0 to "
            f"{checkpoint.inventory.vocab - 1}: the ids are of another tokenizer"
        )
    longest = max(map(len, corpus.windows))
    limit = checkpoint.family.language_config(checkpoint.config).get("max_position_embeddings")
    if isinstance(limit, int) and longest > limit:
        raise ConfigError(
            f"corpus {corpus.name!r} has windows of {longest} tokens, {checkpoint.name} reads at most {limit} "
            f"(max_position_embeddings of its config); lower --length to {limit}, or cut the file of token ids"
            + (f"; {len(corpus.opening)} of them are the beginning that evaluation adds" if corpus.opening else "")
        )


@dataclass(frozen=True)
class _Source:
    """One source of a corpus: ``source`` as written, read for a checkpoint with its encoder."""

    source: str
    checkpoint: Checkpoint
    encoder: Encoder
    opening: tuple[int, ...]
    seed: int
    answers_only: bool
    apart: Apart | None
    read: set[bytes]
    """Gets marks of the documents that windows are cut from."""

    def windows(self, sequences: int, length: int) -> Sequence[Marked]:
        kind, _, rest = self.source.partition(":")
        if self.answers_only and kind not in ("datasets", "chat"):
            raise self._unmarked(f"corpus {self.source!r}")
        if kind == "pocket":
            made = map(Marked, _pocket(rest, self.checkpoint, sequences, length, self.seed))
            return packed(made, self.opening, sequences, length, self.source)
        if kind == "datasets":
            return self._packed(self._encoded(_dataset(rest, self.seed)), sequences, length)
        if kind == "chat":
            return self._packed(self._encoded(_conversations(Path(rest), self.seed)), sequences, length)
        if kind == "instructions":
            return self._packed(self._encoded(instruction_texts(rest, self.seed)), sequences, length)
        path = Path(self.source)
        if not path.is_file():
            raise ConfigError(f"corpus {self.source!r}: there is no such file; allowed: {FORMS}")
        if path.suffix in _ID_FILES:
            return [Marked(opened(row, self.opening)) for row in _raw_ids(path)]
        stream = map(Marked, map(self.encoder.text, pieces(path, self.seed, length)))
        return packed(stream, self.opening, sequences, length, self.source, self.apart, passages=True)

    def _packed(self, stream: Iterable[Marked], sequences: int, length: int) -> list[Marked]:
        return packed(stream, self.opening, sequences, length, self.source, self.apart)

    def _unmarked(self, what: str) -> ConfigError:
        return ConfigError(
            f"answers_only: {what} is no conversation, so nothing says which of its tokens are answers; name a corpus of "
            "conversations (chat:FILE, or a field of messages), or count every token (answers_only: false)"
        )

    def _encoded(self, documents: Iterable[Any]) -> Iterator[Marked]:
        """Yield the ids of documents, but for those that are to be passed over."""
        for number, document in enumerate(documents):
            encoded = self._document(document, f"document {number} of corpus {self.source!r}")
            mark = mark_of(encoded.ids)
            if self.apart is None or not self.apart.passes_document(mark):
                self.read.add(mark)
                yield encoded

    def _document(self, document: Any, where: str) -> Marked:
        """Return the ids of a text, with the end of a document, or of a conversation, whose template ends it."""
        if isinstance(document, str):
            if self.answers_only:
                raise self._unmarked(where)
            return Marked([*self.encoder.text(document), *self.encoder.end])
        if self.answers_only:
            return Marked(*self.encoder.answers(document, where))
        return Marked(self.encoder.chat(document, where))


def _conversations(path: Path, seed: int) -> Iterator[Any]:
    """Yield the conversations of a file, one object with ``messages`` a line, in an order that the seed chooses."""
    lines = [line for line in read_text(path, ConfigError, longest=LONGEST).split("\n") if line.strip()]
    random.Random(f"corpus {seed}").shuffle(lines)
    for line in lines:
        row = parse_json(line, f"a line of {path}", ConfigError)
        if not isinstance(row, dict) or set(row) & MASKS or "messages" not in row:
            raise ConfigError(
                f"a line of {path} is {line[:60]!r}; allowed: an object with messages and without "
                f"{', '.join(sorted(MASKS))}, since masks of data sets are not read; see answers_only"
            )
        yield row["messages"]


def _dataset(rest: str, seed: int) -> Iterator[Any]:
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
    return (row[column] if isinstance(row[column], list) else str(row[column]) for row in shuffled)


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
            found = parse_json(read_text(path, ConfigError, longest=LONGEST), str(path), ConfigError)
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
