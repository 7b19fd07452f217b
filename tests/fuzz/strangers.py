"""Values that files of strangers hold: any JSON, and documents in which one place holds something else."""

from __future__ import annotations

import copy
import json
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

bounded = settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
)
"""Of every test here: the same examples in each run, and few of them."""

SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.sampled_from([0, 1, -1, 3, 10**9, 2**63, 10**400, -(10**400)]),
    st.integers(),
    st.floats(),
    st.sampled_from(["", "0", "silu", "None", "../x", "\0", "\ud800", "x" * 3000, "${a}", "{layer}", "{x!r:>{y}}"]),
    st.text(max_size=8),
)
JSON = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(st.one_of(st.sampled_from(["0", "1", "9"]), st.text(max_size=4)), inner, max_size=3),
    ),
    max_leaves=8,
)


def places(document: Any, here: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Return the path of every value in a document, the outermost first."""
    inner = (
        document.items() if isinstance(document, dict) else enumerate(document) if isinstance(document, list) else ()
    )
    return [here, *(place for key, value in inner for place in places(value, (*here, key)))]


@st.composite
def spoiled(draw: st.DrawFn, document: Any) -> Any:
    """Return ``document`` with one to three of its values replaced, removed or given another name."""
    changed = copy.deepcopy(document)
    for _ in range(draw(st.integers(1, 3))):
        found = [place for place in places(changed) if place]
        if not found:
            break
        *path, last = draw(st.sampled_from(found))
        holder = changed
        for key in path:
            holder = holder[key]
        how = draw(st.sampled_from(["replace", "replace", "replace", "remove", "rename"]))
        if how == "replace":
            holder[last] = draw(JSON)
        elif how == "rename" and isinstance(holder, dict):
            holder[draw(st.text(max_size=6))] = holder.pop(last)
        else:
            holder.pop(last)
    return changed


def text_of(document: Any) -> bytes:
    """Return a document as Python's own writer has it, NaN and lone surrogates included."""
    return json.dumps(document).encode()


@st.composite
def damaged(draw: st.DrawFn, content: bytes) -> bytes:
    """Return ``content`` with some bytes changed, cut out or put in."""
    changed = bytearray(content)
    for _ in range(draw(st.integers(1, 4))):
        place = draw(st.integers(0, len(changed)))
        length = draw(st.integers(0, 6))
        changed[place : place + length] = draw(st.binary(max_size=6))
    return bytes(changed)
