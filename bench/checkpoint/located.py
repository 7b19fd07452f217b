"""Where the tensors that a config asks for lie in the files, in the classic, the fused or a quantised layout."""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from bench.checkpoint.headers import Span
from bench.families.family import Family
from bench.families.layout import FusedSlot
from bench.families.source_formats import stored_formats
from bench.families.stored_formats import COMPANIONS, VALUES, Scheme, StoredFormats
from methods.framework.errors import CheckpointError
from methods.framework.inventory import PASSED_ROLE, Inventory, Piece, Storage, TensorEntry

FLOATS = frozenset({"F64", "F32", "BF16", "F16"})

_ALIKE = (FLOATS | {"F8_E8M0"}, frozenset({"I64", "I32"}))
"""Types that scales may have in each other's place, and counts."""
_COUNTS = ("weight_shape", "weight_g_idx", "g_idx")

Spans = dict[TensorEntry, tuple[Span, ...]]
"""Where the pieces of each tensor lie."""


def located(
    expected: Inventory, family: Family, headers: Mapping[str, Span], path: Path
) -> tuple[Inventory, Mapping[TensorEntry, tuple[Span, ...]]]:
    """Return ``expected`` with the types that the files hold, and where its tensors lie; names and shapes are compared both ways.

    Args:
        expected: what the config asks for.
        family: of the model.
        headers: every tensor in the files.
        path: folder of the checkpoint.

    Raises:
        CheckpointError: a tensor is missing, of another shape or type, or none of the model's.
    """
    search = _Search(family, headers, path, stored_formats(family.language_config(expected.config)))
    outer = tuple(search.locate(entry, 0) for entry in expected.outer)
    layers = tuple(
        replace(layer, tensors=tuple(search.locate(entry, layer.experts) for entry in layer.tensors))
        for layer in expected.layers
    )
    passed = search.passed(family.passed(expected.config))
    search.refuse_differences(expected)
    return replace(expected, outer=(*outer, *passed), layers=layers), search.spans


@dataclass
class _Search:
    """Looks for tensors, and notes which of the files' were found.

    Args:
        family: of the model.
        headers: every tensor in the files.
        path: folder of the checkpoint.
        formats: how matrices are stored where the source is quantised.
    """

    family: Family
    headers: Mapping[str, Span]
    path: Path
    formats: StoredFormats | None
    spans: Spans = field(default_factory=dict)
    used: set[str] = field(default_factory=set)
    missing: list[str] = field(default_factory=list)

    def locate(self, entry: TensorEntry, experts: int) -> TensorEntry:
        """Return ``entry`` with the type of the files; of a layer with so many ``experts``."""
        if (found := self._as_codes(entry) or self._as_fused_codes(entry, experts)) is not None:
            return found
        entry = entry if entry.stored is None else replace(entry, stored=None)
        span = self._as_values(entry, experts)
        if span is None:
            self.missing.append(entry.name)
            return entry
        if span.cut is None:
            self._check_shape(entry.name, span, entry.file_shape)
        if entry.unit_axes:
            span = replace(span, shape=entry.shape)
        if span.dtype != entry.dtype and not {span.dtype, entry.dtype} <= FLOATS:
            raise CheckpointError(
                f"{self.path}: {entry.name} holds {span.dtype}, but the config asks for {entry.dtype}. Codes of few bits "
                "mean nothing without their scales, which this checkpoint does not state; take the 16-bit checkpoint"
            )
        found = entry if span.dtype == entry.dtype else replace(entry, dtype=span.dtype)
        self.spans[found] = (span,)
        return found

    def passed(self, globs: Sequence[str]) -> tuple[TensorEntry, ...]:
        """Return the tensors of the larger model around a language model, by name, which are not looked into.

        Raises:
            CheckpointError: there are none.
        """
        names = sorted(name for name in self.headers if any(fnmatch.fnmatch(name, glob) for glob in globs))
        if globs and not names:
            raise CheckpointError(
                f"{self.path} says that it holds more than a language model, but has no tensors called {' or '.join(globs)}; "
                "fetch it again, or save the language model with a config of its own"
            )
        found = []
        for name in names:
            span = self.headers[name]
            entry = TensorEntry(name.replace("{", "{{").replace("}", "}}"), PASSED_ROLE, span.shape, span.dtype)
            self.spans[entry] = (span,)
            self.used.add(name)
            found.append(entry)
        return tuple(found)

    def refuse_differences(self, expected: Inventory) -> None:
        """Refuse files that lack tensors, or hold tensors that nothing asked for."""
        if self.missing:
            raise CheckpointError(
                f"{self.path} lacks {len(self.missing)} tensors that its config asks for: {_some(self.missing)}"
            )
        globs = self.family.ignorable(expected.config)
        unused = (name for name in self.headers if name not in self.used)
        extra = [name for name in unused if not any(fnmatch.fnmatch(name, glob) for glob in globs)]
        if extra:
            raise CheckpointError(
                f"{self.path} holds {len(extra)} tensors that a {self.family.name} model does not have: {_some(extra)}"
            )

    def _as_codes(self, entry: TensorEntry) -> TensorEntry | None:
        """Return ``entry`` as it is stored, where the files hold codes and scales for it."""
        if self.formats is None or len(entry.shape) != 2:
            return None
        for name in self.family.disk_names(entry):
            stem = name.removesuffix("weight")
            if stem == name:
                continue
            for scheme, _ in self.formats.schemes:
                if scheme.fused:
                    continue
                if f"{stem}{scheme.mark}" in self.headers or self._holds_codes(name, scheme):
                    return self._codes(entry, stem, scheme, self.formats)
            if name in self.headers and self._beside(stem):
                return self._values_with(entry, name)
        return None

    def _as_fused_codes(self, entry: TensorEntry, experts: int) -> TensorEntry | None:
        """Return ``entry`` as it is stored, where the files hold codes of all ``experts`` of its layer in one tensor."""
        scheme = next((one for one, _ in self.formats.schemes if one.fused), None) if self.formats is not None else None
        slot = self.family.fused_slot(entry, experts) if scheme is not None and entry.expert is not None else None
        if slot is None or scheme is None or entry.expert is None:
            return None
        for name in slot.names:
            if f"{name}_blocks" not in self.headers and f"{name}_scales" not in self.headers:
                continue
            if reason := scheme.why_not(*entry.shape):
                raise CheckpointError(f"{self.path}: {entry.name} cannot be stored as {scheme.format}: {reason}")
            storage, spans = scheme.storage(entry.shape), []
            for piece in storage.pieces:
                span = self.headers.get(f"{name}_{piece.name}")
                if span is None:
                    raise CheckpointError(
                        f"{self.path}: {name} is stored as {scheme.format}, and {name}_{piece.name} is not in the files; fetch "
                        "the checkpoint again"
                    )
                self._check_shape(f"{name}_{piece.name}", span, fused_codes(slot, piece))
                self.used.add(f"{name}_{piece.name}")
                flat = replace(span, shape=(*slot.rows[:2], piece.shape[1]))
                spans.append(flat.of_expert(entry.expert, replace(slot.cut, transposed=False)))
            found = replace(entry, stored=storage)
            self.spans[found] = tuple(spans)
            return found
        return None

    def _holds_codes(self, name: str, scheme: Scheme) -> bool:
        span, codes = self.headers.get(name), scheme.make(1, 1)[0]
        return span is not None and codes.name == "weight" and span.dtype == codes.dtype

    def _codes(self, entry: TensorEntry, stem: str, found: Scheme, formats: StoredFormats) -> TensorEntry:
        scheme = formats.of(entry)
        if scheme is None:
            raise CheckpointError(
                f"{self.path}: {entry.name} is stored as {found.format}, but quantization_config excepts its module, and "
                "readers differ in whom they believe; take the module off the list"
            )
        if reason := scheme.why_not(*entry.shape):
            raise CheckpointError(f"{self.path}: {entry.name} cannot be stored as {scheme.format}: {reason}")
        storage = scheme.storage(entry.shape)
        for piece in storage.pieces:
            name = stem + piece.name
            span = self.headers.get(name)
            if span is None:
                raise CheckpointError(
                    f"{self.path}: {entry.name} is stored as {scheme.format}, whose codes mean nothing without {name}, and "
                    "that is not in the files; fetch the checkpoint again, or take the 16-bit one"
                )
            self._check_shape(name, span, piece.shape)
            if span.dtype != piece.dtype and not _may_stand(span.dtype, piece):
                raise CheckpointError(
                    f"{self.path}: {name} holds {span.dtype}, but {scheme.format} has {piece.dtype} there; fetch it again"
                )
        return self._stored(entry, stem, storage, [piece.name for piece in storage.pieces])

    def _values_with(self, entry: TensorEntry, name: str) -> TensorEntry | None:
        """Return ``entry`` with its values in ``name`` and scales of activations beside them; None where these are no values."""
        span = self.headers[name]
        if span.dtype not in FLOATS:
            return None
        self._check_shape(name, span, entry.shape)
        entry = replace(entry, dtype=span.dtype)
        return self._stored(entry, name.removesuffix("weight"), Storage(VALUES, (1, 1), ()), ["weight"])

    def _stored(self, entry: TensorEntry, stem: str, storage: Storage, needed: list[str]) -> TensorEntry:
        """Return ``entry`` with the pieces that the files hold, and note where they lie."""
        names = [*needed, *self._beside(stem)]
        spans = tuple(self.headers[stem + name] for name in names)
        self.used.update(stem + name for name in names)
        pieces = tuple(Piece(name, span.dtype, span.shape) for name, span in zip(names, spans, strict=True))
        found = replace(entry, stored=replace(storage, pieces=pieces))
        self.spans[found] = spans
        return found

    def _beside(self, stem: str) -> list[str]:
        return [name for name in COMPANIONS if stem + name in self.headers]

    def _check_shape(self, name: str, span: Span, shape: tuple[int, ...]) -> None:
        if span.shape != shape:
            raise CheckpointError(
                f"{self.path}: {name} has shape {list(span.shape)}, but the config asks for {list(shape)}"
            )

    def _as_values(self, entry: TensorEntry, experts: int) -> Span | None:
        """Return the bytes of ``entry`` in the classic or in the fused layout, and note which tensors were used."""
        classic = entry.name  # as nearly all files have it; of 100,000 tensors the other names take a while
        for name in (classic,) if classic in self.headers else self.family.disk_names(entry):
            if name in self.headers:
                self.used.add(name)
                return self.headers[name]
        slot = self.family.fused_slot(entry, experts)
        for name in slot.names if slot is not None else ():
            if slot is not None and name in self.headers:
                self.used.add(name)
                whole = self.headers[name]
                cut = slot.cut_of(whole.shape)
                if cut is None or entry.expert is None:
                    raise CheckpointError(
                        f"{name} has shape {list(whole.shape)}, but the config asks for {list(slot.shape(slot.on_disk))}"
                    )
                return whole.of_expert(entry.expert, cut)
        return None


def fused_codes(slot: FusedSlot, piece: Piece) -> tuple[int, ...]:
    """Return the shape of the tensor that holds ``piece`` of all experts: bytes of codes lie in sixteens, each with a scale."""
    columns = piece.shape[1]
    return (*slot.rows[:2], *((columns // 16, 16) if piece.name == "blocks" else (columns,)))


def _may_stand(dtype: str, piece: Piece) -> bool:
    """Return whether tensors of ``dtype`` may stand where a format has ``piece``: scales of another type, other integers."""
    floats, integers = _ALIKE
    if piece.name in _COUNTS:
        return {dtype, piece.dtype} <= integers
    return {dtype, piece.dtype} <= floats


def _some(names: list[str]) -> str:
    return ", ".join(names[:4]) + (", ..." if len(names) > 4 else "")
