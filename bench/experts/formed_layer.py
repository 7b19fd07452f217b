"""One layer whose experts are in a form of their own, without a model around it."""

from __future__ import annotations

from methods.framework.forms import formed
from methods.framework.inventory import ExpertForm, LayerInventory, TensorEntry


def formed_layer(
    form: ExpertForm, experts: int, hidden: int, width: int, top_k: int, dtype: str = "F32"
) -> LayerInventory:
    """Return what a layer stores.

    Args:
        form: how the experts are stored.
        experts: their number.
        hidden: size of their inputs and outputs.
        width: channels of each expert before ``form`` changes it.
        top_k: experts of a token.
        dtype: safetensors name of the type of whole matrices.
    """
    shapes = {"gate": (width, hidden), "up": (width, hidden), "down": (hidden, width)}
    whole = [
        TensorEntry(f"layers.{{layer}}.experts.{{expert}}.{name}.weight", f"expert.{name}", shape, dtype, 0, expert)
        for expert in range(experts)
        for name, shape in shapes.items()
    ]
    return LayerInventory("moe", experts, top_k, formed(whole, form), form=form)
