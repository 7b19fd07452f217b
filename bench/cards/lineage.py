"""Where a written checkpoint comes from, as its ``plan.json`` and the card of its source tell."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from methods.framework.errors import CheckpointError
from methods.framework.outside import read_text

CARD = "README.md"
CARRIED = ("license", "license_name", "license_link", "language", "base_model")
"""What a card takes over from that of its source."""
_FRONT = re.compile(r"\A---\s*\n(.*?)^---\s*$", re.DOTALL | re.MULTILINE)


@dataclass(frozen=True)
class Step:
    """One compression on the way from the source to a checkpoint.

    Args:
        plan: the plan as JSON values.
        provenance: what was said of it when it was written.
    """

    plan: Mapping[str, Any]
    provenance: Mapping[str, Any]

    @property
    def source(self) -> Mapping[str, Any]:
        """Name, revision and content of what it was made from."""
        stated = self.provenance.get("source")
        return stated if isinstance(stated, Mapping) else {}


def steps(document: Mapping[str, Any]) -> list[Step]:
    """Return the compressions that ``plan.json`` tells of, the first before those that went on from its result."""
    found: list[Step] = []
    left: Any = document
    while isinstance(left, Mapping):
        provenance = left.get("provenance")
        provenance = provenance if isinstance(provenance, Mapping) else {}
        found.append(Step({name: value for name, value in left.items() if name != "provenance"}, provenance))
        left = provenance.get("before")
    return found[::-1]


def stated_by_card(folder: Path) -> dict[str, Any]:
    """Return what the card in ``folder`` states of licence, language and base models; nothing where it cannot be read.

    A card is prose by others, so whatever is wrong with it must not keep a checkpoint from being written.
    """
    try:
        front = _FRONT.match(read_text(folder / CARD, CheckpointError))
        values = yaml.safe_load(front.group(1)) if front else None
    except (CheckpointError, yaml.YAMLError, RecursionError, ValueError):
        return {}
    if not isinstance(values, dict):
        return {}
    return {name: values[name] for name in CARRIED if _plain(values.get(name))}


def _plain(value: Any) -> bool:
    """Return whether ``value`` is text, or a list of texts."""
    return isinstance(value, str) or (isinstance(value, list) and all(isinstance(one, str) for one in value))


def licence_files(folder: Path) -> list[str]:
    """Return the names of the files in ``folder`` that state a licence or what comes with one, sorted."""
    return sorted(
        path.name for path in folder.glob("[LNU]*") if path.name.startswith(("LICEN", "NOTICE", "USE_POLICY"))
    )
