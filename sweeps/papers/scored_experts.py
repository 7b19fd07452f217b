"""Which methods have scores of experts that a figure can show, and how these are read. Shape letters: E routed experts."""

from __future__ import annotations

from methods.expert_drop import ExpertDrop
from methods.framework.errors import ConfigError
from methods.framework.method import Method
from methods.framework.stat_spec import Array
from methods.framework.stats import Stats
from methods.moe_i2 import MoEI2


def score_needs(method: Method) -> frozenset[str]:
    """Return the statistics that a method's scores are made of.

    Raises:
        ConfigError: it has none that can be shown.
    """
    if isinstance(method, ExpertDrop):
        return method.needs
    if isinstance(method, MoEI2):
        return frozenset({"removal_loss" if method.importance == "removal_loss" else "gate_norm_moment"})
    raise ConfigError(f"{method.name} gives no scores of experts to draw; allowed: expert_drop, moe_i2")


def scores_of(method: Method, stats: Stats, layer: int) -> Array:
    """Return a method's score of each expert of a layer, shape (E,).

    Args:
        method: one of those with ``score_needs``.
        stats: with these statistics.
        layer: index of the decoder layer.
    """
    if isinstance(method, ExpertDrop):
        return method.scores(stats, layer)
    assert isinstance(method, MoEI2)
    return method.expert_importance(stats, layer)
