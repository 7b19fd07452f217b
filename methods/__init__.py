"""Compression methods, and what the author of one needs; each name is imported when it is first used."""

from typing import TYPE_CHECKING

from methods.framework.lazy_names import lazy_names

if TYPE_CHECKING:
    from methods.framework.allocation import (
        depth_shares,
        expert_counts,
        largest_remainder,
        overall_count,
        removed_count,
        top,
        top_overall,
    )
    from methods.framework.errors import ConfigError, RefusedError
    from methods.framework.inside import Bases, LowRank, Quantisation, SharedBase, Sparsity
    from methods.framework.inventory import Inventory, LayerInventory, Router
    from methods.framework.layer_plan import LayerPlan, Merge
    from methods.framework.method import Keep, LayerwiseMethod, Method, ProbingMethod, Share
    from methods.framework.plan import Plan
    from methods.framework.probe import Probe
    from methods.framework.stats import Array, Stats

__all__ = [
    "Array",
    "Bases",
    "ConfigError",
    "Inventory",
    "Keep",
    "LayerInventory",
    "LayerPlan",
    "LayerwiseMethod",
    "LowRank",
    "Merge",
    "Method",
    "Plan",
    "Probe",
    "ProbingMethod",
    "Quantisation",
    "RefusedError",
    "Router",
    "Share",
    "SharedBase",
    "Sparsity",
    "Stats",
    "depth_shares",
    "expert_counts",
    "largest_remainder",
    "overall_count",
    "removed_count",
    "top",
    "top_overall",
]

__getattr__, __dir__ = lazy_names(__name__)
