"""What a leaderboard page holds."""

from __future__ import annotations

import re
from typing import Any

from analysis.page_rows import unpacked


def held(page: str, name: str) -> Any:
    """Return the data that ``page`` holds under ``name``: rows, details, or data of the plot."""
    found = re.search(rf'id="{name}">(.*?)</script>', page, re.S)
    assert found, name
    return unpacked(found[1])
