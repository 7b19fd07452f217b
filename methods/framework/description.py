"""What a method says of itself, for people: its docstring, its stages and statistics, and its knobs with what they may be."""

from __future__ import annotations

import ast
import inspect
import itertools
import json
import textwrap
import types
import typing
from dataclasses import dataclass
from types import NoneType
from typing import Any, Literal

from pydantic.fields import FieldInfo

from methods.framework.layer_plan import STAGES
from methods.framework.method import Keep, LayerwiseMethod, Method

_SIGNS = {"gt": ">", "ge": ">=", "lt": "<", "le": "<="}
_KINDS: dict[Any, str] = {int: "whole number", float: "number", str: "text"}


@dataclass(frozen=True)
class Knob:
    """One knob of a method, as text.

    Args:
        name: of the knob.
        values: what it may be.
        default: what it is where nothing is set.
        meaning: what it does, with its unit.
    """

    name: str
    values: str
    default: str
    meaning: str


def summary(cls: type[Method]) -> str:
    """Return the first sentence of a method's docstring."""
    return inspect.cleandoc(cls.__doc__ or "").split("\n")[0]


def stages(cls: type[Method]) -> str:
    """Return the plan stages that a method writes, in the order in which they are applied."""
    return ", ".join(stage for stage in STAGES if stage in cls.stages)


def facts(cls: type[Method]) -> dict[str, str]:
    """Return what else a reader asks about a method, by name: source, stages, how it decides, what it reads and writes."""
    plain = cls()
    whole = "by running the model on candidates" if plain.probing else "over the whole model"
    return {
        "source": cls.source,
        "stages": stages(cls),
        "decides": "layer by layer" if issubclass(cls, LayerwiseMethod) else whole,
        "reads": ", ".join(sorted(plain.needs)) or "no statistics",
        "writes": ", ".join(sorted(plain.moments)) or "no statistics",
    }


def knobs(cls: type[Method]) -> tuple[Knob, ...]:
    """Return the knobs of a method, without those that it has fixed to one value."""
    told = _attribute_docstrings(cls)
    return tuple(
        Knob(name, _keeps(cls, field) if name == "keep" else values_of(field), _shown(field.default), meaning)
        for name, field in cls.model_fields.items()
        if len(typing.get_args(field.annotation)) != 1
        for meaning in [field.description or told.get(name, "")]
    )


def values_of(field: FieldInfo) -> str:
    """Return in words what a knob may be: its values as they are written after ``--set``, or its kind and bounds."""
    members = typing.get_args(field.annotation) if _is_union(field.annotation) else (field.annotation,)
    words: list[str] = []
    for member in members:
        if typing.get_origin(member) is Literal:
            words += [_shown(value) for value in typing.get_args(member)]
        elif member is bool:
            words += ["true", "false"]
        elif member is not NoneType:
            words.append(f"{_KINDS.get(member, str(member))} {_bounds(field)}".strip())
    return " | ".join([*words, *(["null"] if NoneType in members else [])])


def _bounds(field: FieldInfo) -> str:
    found = [
        f"{sign} {getattr(mark, name):g}"
        for mark in field.metadata
        for name, sign in _SIGNS.items()
        if hasattr(mark, name)
    ]
    return ", ".join(found)


def _keeps(cls: type[Method], field: FieldInfo) -> str:
    if cls.shares:
        return " | ".join(map(_shown, cls.shares))
    return "number > 0, <= 1" + ("; or such numbers over the depth, 0.3/0.5" if field.annotation == Keep else "")


def _shown(value: Any) -> str:
    """Return a value as it is written after ``--set``, which is YAML."""
    return json.dumps(value) if isinstance(value, bool) or value is None else str(value)


def _is_union(annotation: Any) -> bool:
    return typing.get_origin(annotation) in (typing.Union, types.UnionType)


def _attribute_docstrings(cls: type[Method]) -> dict[str, str]:
    """Return the strings that stand below the fields of ``cls`` and of the classes that it is made from."""
    found: dict[str, str] = {}
    for owner in reversed(cls.__mro__):
        if not issubclass(owner, Method):
            continue
        body = ast.parse(textwrap.dedent(inspect.getsource(owner))).body[0]
        assert isinstance(body, ast.ClassDef)
        for field, below in itertools.pairwise(body.body):
            match field, below:
                case (
                    ast.AnnAssign(target=ast.Name(id=name)),
                    ast.Expr(value=ast.Constant(value=str(text))),
                ):
                    found[name] = " ".join(text.split())
    return found
