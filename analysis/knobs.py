"""The knobs of a run as text: all of them, and those that tables show."""

from __future__ import annotations

import functools
import json
import re

from bench.records.depth_profile import depth_profile
from bench.records.record import Record
from bench.records.usual import default_knobs

TRAINING = "recovery."
"""How the names of knobs of a training after compression begin."""


def knobs_text(record: Record) -> str:
    """Return the knobs as ``name=value``, by name, those of a training last; those without a value are left out."""
    items = [(name, value) for name, value in record.knobs.items() if value is not None]
    items.sort(key=lambda item: (item[0].startswith(TRAINING), item[0]))
    return ", ".join(f"{name}={compact(value)}" for name, value in items)


def split_training(knobs: str | None) -> tuple[str, str]:
    """Return the two parts of ``knobs_text``: the method's own knobs, and those of the training after it."""
    own, comma, training = (", " + (knobs or "")).partition(f", {TRAINING}")
    return own.removeprefix(", "), TRAINING + training if comma else ""


def compact(value: object) -> str:
    """Return one value as short as it can be read."""
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, list) and all(isinstance(item, float) for item in value):
        return f"[{', '.join(f'{item:g}' for item in value)}]"
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True)


def shown_knobs(method: str | None, knobs: str) -> str:
    """Return those of ``knobs_text`` that tables show: the method's own that are not as they come, and always ``keep``.

    Of the dozens of a recipe what its steps keep is shown. A number for each of many layers is told by mean and range.
    """
    own = _KNOB.split(split_training(knobs)[0])
    if method != "recipe":
        usual = _default_texts(method)
        return ", ".join(_in_short(one) for one in own if one.startswith("keep=") or one not in usual)
    return ", ".join(_in_short(one.partition(".")[2]) for one in own if one.partition("=")[0].endswith(".keep"))


def _in_short(knob: str) -> str:
    """Return ``name=value`` with a long list of numbers by its mean and range."""
    name, _, value = knob.partition("=")
    if not value.startswith("["):
        return knob
    try:
        told = depth_profile(json.loads(value))
    except ValueError:  # a text that begins like a list
        return knob
    return knob if told is None else f"{name}={told}"


_KNOB = re.compile(r", (?=[\w.]+=)")
"""What stands between two knobs; values hold commas too."""


@functools.cache
def _default_texts(method: str | None) -> frozenset[str]:
    return frozenset(f"{name}={compact(value)}" for name, value in default_knobs(method).items() if value is not None)
