"""A checkpoint: a folder of safetensors files and a config, read tensor by tensor and never as a whole."""

from __future__ import annotations

import fnmatch
import gc
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from bench.checkpoint.config_file import read_config
from bench.checkpoint.content import companions, content_digest, stated_digest
from bench.checkpoint.headers import Span
from bench.checkpoint.located import FLOATS, located
from bench.checkpoint.source import Source, found_source
from bench.checkpoint.tied import check_tied
from bench.checkpoint.weight_files import INDEX, SINGLE, read_headers
from bench.families.family import Family, family_of
from methods.framework.errors import CheckpointError
from methods.framework.inventory import Inventory, TensorEntry

if TYPE_CHECKING:
    import torch

    from bench.checkpoint.tensor_files import Files

__all__ = ["INDEX", "SINGLE", "Checkpoint", "read_headers"]

_NOT_A_NUMBER = {"F8_E4M3": (0x7F, 0x7F), "F8_E8M0": (0xFF, 0xFF)}
"""Bits to look at in a byte of these types, and what stands there where it is no number."""
_TOKENIZER = (
    "tokenizer*",
    "vocab*",
    "merges.txt",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template*",
    "*.model",
    "*.tiktoken",
    "tekken.json",
)


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """An opened checkpoint. Weights of a hub model are fetched when the first of them, or their digest, is asked for.

    Args:
        path: folder; of a hub model it holds the files beside the weights, and all of them after ``complete``.
        name: folder name, or hub id.
        revision: hub commit, where it came from the hub.
        config: parsed ``config.json``.
        family: family of the model.
        inventory: what it contains, with the dtypes that the files hold.
        left_out: tensors of its files that are no part of the model as it is run here, such as those of multi-token
            prediction; no result has them.
        trust_remote_code: whether Python code in the folder may be run, as some tokenizers need.
        source: where it comes from.
    """

    path: Path
    name: str
    revision: str | None
    config: Mapping[str, Any]
    family: Family
    inventory: Inventory
    _spans: Mapping[TensorEntry, tuple[Span, ...]] = field(repr=False)
    left_out: tuple[str, ...] = ()
    trust_remote_code: bool = False
    source: Source | None = None

    @classmethod
    def open(cls, source: str | Path, revision: str | None = None, trust_remote_code: bool = False) -> Self:
        """Open a local folder or a hub model; reads the config and the files' headers, and compares them.

        Args:
            source: folder, hub id (maybe with ``@REVISION``) or name of a pocket model.
            revision: hub branch, tag or commit.
            trust_remote_code: whether its tokenizer may run Python code that lies in the folder.

        Raises:
            CheckpointError: missing, truncated, inconsistent, quantised in an unknown way, not obtainable; names the culprit.
            NotMoEError: not a MoE model, or of an unknown family.
        """
        return cls.of(found_source(source, revision), trust_remote_code)

    @classmethod
    def of(cls, found: Source, trust_remote_code: bool = False) -> Self:
        """Open what was found already; see ``open``."""
        path = found.folder
        config = read_config(path)
        family = family_of(config)
        with _no_collection():
            headers = read_headers(path, found.hub)
            inventory, spans = located(family.inventory(config), family, headers, path)
            check_tied(inventory, family, headers, path)
            left_out = _left_out(family, config, headers)
        return cls(path, found.name, found.commit, config, family, inventory, spans, left_out, trust_remote_code, found)

    def complete(self) -> Path:
        """Fetch the weights that are still on the hub, and return the folder, which holds the whole model then.

        Raises:
            CheckpointError: the hub does not give them.
        """
        return self.path if self.source is None else self.source.complete()

    @cached_property
    def _files(self) -> Files:
        """The open files; reading tensors needs torch, which looking at a checkpoint does not."""
        from bench.checkpoint.tensor_files import Files

        self.complete()
        return Files()

    @cached_property
    def content(self) -> str:
        """Digest of everything in the folder that can change an answer; computed once, streaming.

        Config, safetensors bytes, and the files beside them: tokenizer, chat template, settings of generation, code.

        Raises:
            CheckpointError: a checkpoint that moebench wrote does not hold what was written.
        """
        self.complete()
        weights = {span.file for spans in self._spans.values() for span in spans}
        found = content_digest(self.config, {*weights, *companions(self.path)})
        stated = stated_digest(self.path)
        if stated is not None and stated != found:
            raise CheckpointError(
                f"{self.path} does not hold what was written to it: a file was changed or damaged since. Remove the folder "
                "and make it again, or, where the change is meant, remove `written` from its plan.json"
            )
        return found

    @property
    def tokenizer_files(self) -> tuple[Path, ...]:
        """Files of the tokenizer, sorted by name."""
        return tuple(
            p for p in sorted(self.path.iterdir()) if any(fnmatch.fnmatch(p.name, glob) for glob in _TOKENIZER)
        )

    def spans(self, entry: TensorEntry) -> tuple[Span, ...]:
        """Return where the bytes of each piece of ``entry`` lie.

        Raises:
            CheckpointError: this checkpoint has no such tensor.
        """
        try:
            return self._spans[entry]
        except KeyError:
            raise CheckpointError(
                f"{self.name} has no tensor {entry.name} of {entry.dtype} {list(entry.shape)}"
            ) from None

    def read(self, entry: TensorEntry, rows: Sequence[int] | None = None) -> torch.Tensor:
        """Return a tensor, or the ``rows`` (ascending indices of the first axis) of it, in the dtype of the file.

        Codes of a quantised source are read as the values that they stand for, in the type that these have.

        Raises:
            CheckpointError: the file was cut, or values are not finite.
        """
        spans = self.spans(entry)
        if entry.stored is None:
            return _finite(self._files.read(spans[0], rows), entry, self.path)
        from bench.checkpoint.dequantised import dequantised

        values = dequantised(entry, [self._files.read(span, None) for span in spans])
        return _finite(values if rows is None else values[list(rows)], entry, self.path)

    def piece(self, entry: TensorEntry, piece: int = 0) -> torch.Tensor:
        """Return a piece of a tensor as it lies in the files, codes as they are.

        Raises:
            CheckpointError: the file was cut, or values are not finite.
        """
        spans = self.spans(entry)
        span = spans[piece]
        values = self._files.read(span, None)
        return values if span.dtype not in FLOATS else _finite(values, entry, self.path)

    def read_into(self, entry: TensorEntry, out: torch.Tensor, rows: Sequence[int] | None = None) -> None:
        """Read a tensor (or its ``rows``) into ``out``: straight into its memory, or with conversion to its dtype.

        Args:
            entry: tensor of the inventory.
            out: of its shape, or of that of its rows.
            rows: indices along the first axis, in this order; None reads all.

        Raises:
            CheckpointError: the shape of ``out`` differs, the file was cut, or values are not finite.
        """
        shape = entry.shape if rows is None else (len(rows), *entry.shape[1:])
        if tuple(out.shape) != shape:
            raise CheckpointError(f"{entry.name} has shape {list(shape)}; the target has {list(out.shape)}")
        if entry.stored is not None:
            out.copy_(self.read(entry, rows))
            return
        self._files.load(self.spans(entry)[0], rows, out)
        _finite(out, entry, self.path)

    def bytes_of(self, entry: TensorEntry, rows: Sequence[int] | None = None, piece: int = 0) -> Iterator[memoryview]:
        """Yield the bytes of a tensor (or of its ``rows``); each chunk is valid until the next is taken.

        Args:
            entry: tensor of the inventory.
            rows: indices along the first axis, in this order; None yields all.
            piece: which of its pieces.
        """
        return self._files.chunks(self.spans(entry)[piece], rows)

    def copy_to(self, entry: TensorEntry, descriptor: int, rows: Sequence[int] | None = None, piece: int = 0) -> None:
        """Append the bytes of a tensor (or of its ``rows``) to an open file, and look at its values.

        Where it can, the copy is made inside the kernel.

        Args:
            entry: tensor of the inventory.
            descriptor: of a file that is open for writing.
            rows: indices along the first axis, in this order; None copies all.
            piece: which of its pieces.

        Raises:
            OSError: the disk refuses.
            CheckpointError: values are not finite.
        """
        span = self.spans(entry)[piece]
        self._files.copy(span, rows, descriptor)
        if span.dtype in FLOATS or span.dtype in _NOT_A_NUMBER:
            import torch

            from bench.checkpoint.tensor_files import TORCH_DTYPES

            wrong = total = 0
            for chunk in self.bytes_of(entry, rows, piece):
                if span.dtype in FLOATS:
                    values = torch.frombuffer(chunk, dtype=TORCH_DTYPES[span.dtype])
                    wrong += _wrong(values)
                else:
                    mask, found = _NOT_A_NUMBER[span.dtype]
                    values = torch.frombuffer(chunk, dtype=torch.uint8)
                    wrong += int((values & mask).eq(found).sum())
                total += values.numel()
            _refuse(wrong, total, entry, self.path)

    def close(self) -> None:
        """Close the files; reading opens them again."""
        if "_files" in self.__dict__:
            self._files.close()


@contextmanager
def _no_collection() -> Iterator[None]:
    """Keep Python from looking for cycles, again and again, among small objects of which 100,000 tensors need a million."""
    before = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if before:
            gc.enable()


def _left_out(family: Family, config: Mapping[str, Any], headers: Mapping[str, Span]) -> tuple[str, ...]:
    """Return tensors of whole layers that are not carried over; what can be made again, such as tied heads, is none."""
    globs = [glob for glob in family.ignorable(config) if glob.endswith(".*")]
    return tuple(sorted({name for glob in globs for name in fnmatch.filter(headers, glob)}))


def _finite(values: torch.Tensor, entry: TensorEntry, path: Path) -> torch.Tensor:
    """Return ``values`` that were read as ``entry``, unless one is NaN or infinite: everything made of them would be, too."""
    if values.is_floating_point():
        _refuse(_wrong(values), values.numel(), entry, path)
    return values


def _wrong(values: torch.Tensor) -> int:
    """Return how many of ``values`` are NaN or infinite."""
    import torch

    # The sum is one pass without a copy; one that is not finite may still be an overflow, so that is looked at closely.
    if torch.isfinite(values.detach().sum()):
        return 0
    return int((~torch.isfinite(values)).sum())


def _refuse(wrong: int, total: int, entry: TensorEntry, path: Path) -> None:
    if wrong:
        raise CheckpointError(f"{path}: {wrong} of {total} values of {entry.name} are NaN or infinite; fetch it again")
