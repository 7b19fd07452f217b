"""How a layer's config states the form of its experts: channels, ranks, a shared base or shared bases.

Letters: E experts of the layer.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from methods.framework.errors import CheckpointError
from methods.framework.inventory import ExpertForm, Packing

FORM_KEY = "expert_form"
"""Key of a layer whose experts are not three whole matrices each."""

_FIELDS = ("widths", "ranks", "base", "bases")


def form_document(form: ExpertForm | None) -> dict[str, Any]:
    """Return what the config of a layer states about ``form``; empty where bits, which stand elsewhere, are all of it."""
    if form is None:
        return {}
    stated = {name: getattr(form, name) for name in _FIELDS}
    return {name: _plain(value) for name, value in stated.items() if value is not None}


def read_form(document: Any, bits: Packing | None, experts: int, layer: int) -> ExpertForm | None:
    """Return the form that a layer's config states.

    Args:
        document: value of ``FORM_KEY``, or None.
        bits: packing that the quantisation of the model states for this layer.
        experts: experts that the layer stores, E.
        layer: its index, for messages.

    Raises:
        CheckpointError: the document is damaged.
    """
    if not document:
        return None if bits is None else ExpertForm(bits=bits)

    def damaged(found: str) -> CheckpointError:
        return CheckpointError(
            f"{FORM_KEY} of layer {layer} in config.json is damaged: {found}; fetch or write the checkpoint again"
        )

    if not isinstance(document, Mapping) or (unknown := sorted(set(document) - set(_FIELDS))):
        raise damaged(f"it holds {', '.join(unknown) if isinstance(document, Mapping) else type(document).__name__}")
    widths, ranks, base, bases = (document.get(name) for name in _FIELDS)
    if widths is not None and not _whole(widths, experts, 1):
        raise damaged(f"widths must be {experts} positive integers, one for each expert")
    if ranks is not None and not (
        isinstance(ranks, list | tuple) and len(ranks) == experts and all(_whole(row, 3, 0) for row in ranks)
    ):
        raise damaged(f"ranks must be {experts} rows of three integers from 0 on")
    if base is not None and not _whole(base, 3, 1):
        raise damaged("base must be three positive integers")
    if bases is not None and not (
        isinstance(bases, list | tuple) and len(bases) == 3 and _whole(bases[:2], 2, 1) and bases[2] in ("silu", "tanh")
    ):
        raise damaged("bases must be two positive integers and an activation, silu or tanh")
    form = ExpertForm(
        widths=None if widths is None else tuple(widths),
        ranks=None if ranks is None else tuple((row[0], row[1], row[2]) for row in ranks),
        base=None if base is None else (base[0], base[1], base[2]),
        bases=None if bases is None else (bases[0], bases[1], bases[2]),
        bits=bits,
    )
    if (reason := _contradiction(form)) is not None:
        raise damaged(reason)
    return form


def _contradiction(form: ExpertForm) -> str | None:
    """Return why no experts are stored in ``form``, or None."""
    if form.base is not None and (form.ranks is None or any(0 in ranks for ranks in form.ranks)):
        return "beside a base it needs a rank of at least 1 for every matrix"
    if form.widths is not None and (form.base is not None or form.bases is not None):
        return "experts that share a base or bases have all of their channels, so there are no widths"
    if form.ranks is not None and form.bases is not None:
        return "ranks and bases exclude each other"
    if form.bits is not None and (form.ranks is not None or form.bases is not None):
        return "factors and bases are not stored in few bits, as quantization_config says"
    return None


def _whole(values: Any, count: int, least: int) -> bool:
    """Return whether ``values`` are ``count`` integers of at least ``least``."""
    return (
        isinstance(values, list | tuple)
        and len(values) == count
        and all(isinstance(value, int) and not isinstance(value, bool) and value >= least for value in values)
    )


def _plain(value: Any) -> Any:
    return [_plain(one) for one in value] if isinstance(value, tuple) else value
