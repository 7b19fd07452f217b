"""Families of methods, by what is taken out of a model: which colour and shape a run has in a figure."""

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

_EXPERTS = (
    "random weight_norm criterion frequency soft_count ean reap man msan expert_drop diep naee naee_progressive naee_greedy "
    "moe_i2 cka_merge cka_prune hc_smoe sub_moe stun easy_ep mone m_smoe ream"
)
_MEMBERS: Mapping[str, str] = {
    "experts": _EXPERTS,
    "layers": "layer_drop block_drop",
    "channels": "camera_p heapr",
    "rank": "svd whitened_svd d2_moe mobe",
    "sparsity": "magnitude wanda moe_pruner sparsegpt",
    "bits": "rtn gptq awq",
    "recipe": "recipe",
}
_FAMILY = {method: family for family, methods in _MEMBERS.items() for method in methods.split()}


def family_of(row: Mapping[str, Any]) -> str:
    """Return the key in ``FAMILIES`` of a row of the frame; a method of another distribution is told by its zeros alone."""
    if row["method"] in _FAMILY:
        return _FAMILY[row["method"]]
    return "sparsity" if known(row["zeros"]) and row["zeros"] > 0 else "other"
