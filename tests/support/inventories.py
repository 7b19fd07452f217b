"""An inventory written by hand: three layers, the first dense, hidden size 4, expert width 3, 4 experts, top-2."""

from __future__ import annotations

from methods.framework.inventory import Attention, Inventory, LayerInventory, Router, TensorEntry

_DTYPE = "BF16"


def _entry(template: str, role: str, shape: tuple[int, ...], layer: int, expert: int | None = None) -> TensorEntry:
    return TensorEntry("layers.{layer}." + template, role, shape, _DTYPE, layer, expert)


def _layer(index: int, experts: int) -> LayerInventory:
    tensors = [_entry("q", "attention.q", (4, 4), index), _entry("norm", "norm.mlp", (4,), index)]
    if not experts:
        tensors += [_entry(f"dense.{m}", f"dense.{m}", (5, 4), index) for m in ("gate", "up", "down")]
        return LayerInventory("dense", 0, 0, tuple(tensors))
    tensors.append(_entry("router", "router.weight", (experts, 4), index))
    for expert in range(experts):
        tensors += [
            _entry("expert.{expert}.gate", "expert.gate", (3, 4), index, expert),
            _entry("expert.{expert}.up", "expert.up", (3, 4), index, expert),
            _entry("expert.{expert}.down", "expert.down", (4, 3), index, expert),
        ]
    return LayerInventory("moe", experts, 2, tuple(tensors))


def toy_inventory(experts: int = 4, moe_layers: int = 2, groups: int = 1) -> Inventory:
    """Return the inventory; family 'toy', vocabulary 10, one attention head of dimension 4, tied output head."""
    layers = (_layer(0, 0), *(_layer(1 + index, experts) for index in range(moe_layers)))
    return Inventory(
        family="toy",
        hidden=4,
        vocab=10,
        attention=Attention(heads=1, qk_head_dim=4, v_head_dim=4),
        router=Router(groups=groups, groups_kept=1),
        layers=layers,
        outer=(TensorEntry("embed", "embed", (10, 4), _DTYPE),),
        tied_embeddings=True,
    )
