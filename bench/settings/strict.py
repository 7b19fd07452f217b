"""Strict settings: frozen, every key known, and one clear error that names the closest match."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
    model_validator,
)

from methods.framework.errors import ConfigError, UnknownNameError
from methods.framework.outside import read_text
from methods.framework.wording import wording

_LONGEST = 16 << 20
"""Bytes of the longest file of settings."""

Settings = TypeVar("Settings", bound=BaseModel)


class Strict(BaseModel):
    """A part of a configuration: frozen, and an unknown key is an error that names the closest known one."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _known_keys(cls, data: Any) -> Any:
        for key in data if isinstance(data, Mapping) else ():
            if key not in cls.model_fields:
                raise ValueError(str(UnknownNameError("key", str(key), cls.model_fields)))
        return data


class Extended(Strict):
    """Settings with fields that came later: they are left out where they have their default, so that ids of earlier runs stay."""

    later: ClassVar[tuple[str, ...]]

    @model_serializer(mode="wrap")
    def _without_later_fields(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        document: dict[str, Any] = handler(self)
        for name in self.later:
            if document.get(name) == type(self).model_fields[name].default:
                document.pop(name, None)
        return document


def load_settings(path: Path, kind: type[Settings]) -> Settings:
    """Read a YAML file into the settings class ``kind``; ConfigError names what is wrong with it."""
    return validated(read_settings(path), kind, str(path))


def read_settings(path: Path) -> dict[str, Any]:
    """Read a YAML file that holds settings by name.

    Raises:
        ConfigError: no such file, not YAML, or something else than names with values.
    """
    try:
        document = yaml.safe_load(read_text(path, ConfigError, longest=_LONGEST))
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        # ValueError: PyYAML's own constructors let impossible dates and numbers through to Python's.
        raise ConfigError(f"{path} is not YAML: {error}") from error
    if not isinstance(document, dict):
        raise ConfigError(f"{path} should hold settings by name, found {type(document).__name__}")
    return document


def validated(document: Mapping[str, Any], kind: type[Settings], where: str) -> Settings:
    """Return ``document`` as settings.

    Args:
        document: fields by name, as read.
        kind: class of the settings.
        where: the document comes from, for messages.

    Raises:
        ConfigError: names ``where``, the key, what was found and what is allowed.
    """
    try:
        return kind.model_validate(document)
    except ValidationError as error:
        raise ConfigError(f"{where}: {wording(error, document)}") from error
