"""What a layer stores whose experts are in a form of their own."""

from __future__ import annotations

from methods.framework.forms import formed
from methods.framework.inventory import ExpertForm, LayerInventory, TensorEntry


def formed_layer(form: ExpertForm, experts: int, hidden: int, width: int, top_k: int) -> LayerInventory:
    """Return a layer of ``experts`` of ``width`` channels, which ``form`` then changes."""
    shapes = {"gate": (width, hidden), "up": (width, hidden), "down": (hidden, width)}
    whole = [
        TensorEntry(f"layers.{{layer}}.experts.{{expert}}.{name}.weight", f"expert.{name}", shape, "F32", 0, e)
        for e in range(experts)
        for name, shape in shapes.items()
    ]
    return LayerInventory("moe", experts, top_k, formed(whole, form), form=form)
