"""Transformers: it runs whatever our families describe, for quality; speed is measured with engines that serve."""

from __future__ import annotations

from bench.serving.engine import Engine
from bench.serving.target import Verdict, transformers_verdict
from methods.framework.inventory import Inventory
from methods.framework.plan import Plan


class Transformers(Engine):
    """The model classes of transformers, as ``bench.models.load`` fills them."""

    name = "transformers"
    cannot = "transformers is run for quality; speed is measured with vLLM"

    def verdict(self, plan: Plan, inventory: Inventory) -> Verdict:
        """Return what the rules say about ``plan``; every form of experts is loaded."""
        return transformers_verdict(plan, inventory, self)


ENGINE = Transformers()
