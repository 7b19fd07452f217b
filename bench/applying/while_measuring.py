"""Experts that a plan changes inside, for a pass that measures the layers after them."""

from __future__ import annotations

from functools import partial

from bench.applying.computed import Recipes
from bench.applying.computed_by import what_computes
from bench.calibration.layers.layer_experts import Made
from bench.checkpoint.checkpoint import Checkpoint
from bench.store.store import digest_of
from methods.framework.layer_plan import LayerPlan
from methods.framework.stats import Stats


class MakingExperts:
    """Makes the experts of a layer from the moments that the pass has just measured there.

    They are the values that are stored. AWQ's scale is undone in their columns instead of being put into norm and router, so
    that the router is that of the source; in a checkpoint its scaled rows are rounded once more.
    """

    def __init__(self, checkpoint: Checkpoint, device: str) -> None:
        """Make nothing yet.

        Args:
            checkpoint: the source.
            device: torch device on which experts are made.
        """
        self._checkpoint, self._device = checkpoint, device
        self.digest = digest_of(what_computes(device))

    def __call__(self, layer: int, plan: LayerPlan, stats: Stats) -> Made:
        """Return what makes the experts of ``layer``."""
        return partial(Recipes(self._checkpoint, stats, self._device).expert, layer, plan)
