"""Families of methods, by the plan stages that they write: which colour and shape a run has in a figure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from analysis.formatting import known
from analysis.palette import LIGHT


@dataclass(frozen=True)
class Look:
    """How a family is drawn.

    Args:
        label: words of the legend.
        marker: matplotlib's.
        filled: False for families whose files do not get smaller.
        size: of the marker in points, larger for shapes with less ink.
    """

    label: str
    colour: str
    marker: str
    filled: bool = True
    size: float = 6.0


FAMILIES: Mapping[str, Look] = {
    "experts": Look("experts removed or merged", LIGHT[0], "o"),
    "layers": Look("layers or blocks removed", LIGHT[1], "s"),
    "channels": Look("channels removed", LIGHT[2], "D"),
    "rank": Look("low rank", LIGHT[3], "^", size=6.5),
    "sparsity": Look("sparse (zeros stored, bytes do not fall)", LIGHT[7], "v", filled=False, size=6.5),
    "bits": Look("few bits", LIGHT[4], "P", size=7.5),
    "recipe": Look("recipe of several", LIGHT[5], "X", size=7.5),
    "other": Look("other method", "#777777", "p"),
}
"""In the order of legends."""

_LAYERS = frozenset({"blocks", "sublayers"})


def family_of(row: Mapping[str, Any]) -> str:
    """Return the key in ``FAMILIES`` of a row of the frame: what its stages take out.

    A method that writes stages of several families is drawn as a recipe is. Where the stages are not known (see
    ``bench.records.earlier``), zeros tell a sparse model.
    """
    stages = row["stages"].split(", ") if row["stages"] else []
    families = {"layers" if stage in _LAYERS else stage for stage in stages} & FAMILIES.keys()
    if row["method"] == "recipe" or len(families) > 1:
        return "recipe"
    if len(families) == 1:
        return families.pop()
    return "sparsity" if known(row["zeros"]) and row["zeros"] > 0 else "other"
