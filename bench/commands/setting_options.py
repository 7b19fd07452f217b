"""Options of the command line that are settings: their descriptions, types and defaults stand in the settings classes alone."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import wraps
from types import NoneType
from typing import Any, Literal, get_args, get_origin

import typer
from pydantic import BaseModel
from pydantic.fields import FieldInfo

Given = dict[str, Any]
"""Settings that a user gave, as a document that holds nothing else."""

SEVERAL = "with commas between, or given again"
"""How an option takes several values."""

_Verb = Callable[..., None]


@dataclass(frozen=True)
class Part:
    """Fields of one settings class that a verb offers as options.

    Args:
        settings: the class.
        fields: its fields, in the order of the help.
        key: where they stand in the document; empty for its top level.
        panel: heading of these options in the help; None for the options without one.
    """

    settings: type[BaseModel]
    fields: tuple[str, ...]
    key: str = ""
    panel: str | None = None


def with_settings(*parts: Part) -> Callable[[_Verb], _Verb]:
    """Return a decorator that gives a verb one option for each field of ``parts``.

    The verb is called with ``given``, a document of those that the user gave. A field of that name in several parts is one
    option, which the first of them describes.
    """

    def decorated(verb: _Verb) -> _Verb:
        options: dict[str, inspect.Parameter] = {}
        for part in parts:
            for name in part.fields:
                options.setdefault(name, _option(name, part.settings.model_fields[name], part.panel))

        @wraps(verb)
        def called(context: typer.Context, **values: Any) -> None:
            chosen = {name: values.pop(name) for name in options}
            chosen = {name: value for name, value in chosen.items() if _is_given(context, name)}
            verb(given=_document(parts, chosen), **values)

        own = [one for one in inspect.signature(verb, eval_str=True).parameters.values() if one.name != "given"]
        context = inspect.Parameter("context", inspect.Parameter.KEYWORD_ONLY, annotation=typer.Context)
        by_name = [one.replace(kind=inspect.Parameter.KEYWORD_ONLY) for one in own]
        first = [option for name, option in options.items() if option.default.rich_help_panel is None]
        last = [option for option in options.values() if option not in first]
        called.__signature__ = inspect.Signature([context, *first, *by_name, *last])  # type: ignore[attr-defined]  # typer reads it
        return called

    return decorated


def listed(given: Sequence[str]) -> list[str]:
    """Return the values of an option that takes several, with commas between or given again."""
    return [value.strip() for text in given for value in text.split(",") if value.strip()]


def _is_given(context: typer.Context, name: str) -> bool:
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def _document(parts: tuple[Part, ...], chosen: Given) -> Given:
    """Return the settings that were given, each where its part stands."""
    document: Given = {}
    for part in parts:
        own = {
            name: listed(value) if _is_list(_members(part.settings.model_fields[name])) else value
            for name, value in chosen.items()
            if name in part.fields
        }
        if part.key and own:
            document.setdefault(part.key, {}).update(own)
        elif own:
            document.update(own)
    return document


def _option(name: str, field: FieldInfo, panel: str | None) -> inspect.Parameter:
    """Return the option of one field; values from a list stay text, so that the settings refuse others in their words."""
    members = _members(field)
    values = [value for member in members if get_origin(member) is Literal for value in get_args(member)]
    several = _is_list(members)
    kind: Any = list[str] if several else str if values else members[0]
    default = None if field.is_required() or field.default == () else field.default
    option = typer.Option(
        default,
        help=f"{field.description}; {SEVERAL}" if several else field.description,
        metavar=f"<{'|'.join(map(str, values))}>" if values else None,
        rich_help_panel=panel,
    )
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=option, annotation=kind | None)


def _members(field: FieldInfo) -> tuple[Any, ...]:
    """Return the types that a field may have, without None."""
    annotation = field.annotation
    union = get_args(annotation) if NoneType in get_args(annotation) else (annotation,)
    return tuple(member for member in union if member is not NoneType)


def _is_list(members: tuple[Any, ...]) -> bool:
    return get_origin(members[0]) is tuple
