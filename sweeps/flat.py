"""Names of nested values in flat form, such as ``score.nll``, so that tables and plots of others find them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def flattened(**groups: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of each group as ``group.name``."""
    return {f"{group}.{name}": value for group, values in groups.items() for name, value in values.items()}
