"""``moebench inspect``: what a checkpoint contains, read from its config and its files' headers."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict
from itertools import groupby

from rich.table import Table

from bench.commands.options import Model
from bench.commands.printing import console
from bench.library.opening import open_checkpoint
from methods.framework.cost import cost_of


def inspect(model: Model, revision: str | None = None) -> None:
    """Print runs of equal layers, the router and the cost of a checkpoint."""
    out = console()
    checkpoint = open_checkpoint(model, revision)
    inventory = checkpoint.inventory
    table = Table("layers", "sub-layer", "experts", "top-k", title=f"{checkpoint.name} ({inventory.family})")
    for shape, run in groupby(enumerate(inventory.layers), key=lambda one: (one[1].mlp, one[1].experts, one[1].top_k)):
        indices = [index for index, _ in run]
        layers = f"{indices[0]}-{indices[-1]}" if len(indices) > 1 else str(indices[0])
        table.add_row(layers, *map(str, shape))
    out.print(table)
    out.print(inventory.router)
    stored = Counter(entry.stored.format for entry in inventory.tensors() if entry.stored is not None)
    for kind, number in stored.items():
        out.print(f"quantised source: {number} matrices are stored as {kind}, and read as the values they stand for")
    if checkpoint.left_out:
        number, first = len(checkpoint.left_out), checkpoint.left_out[0]
        out.print(
            f"left out: {number} tensors of layers that only predict further tokens, {first} the first; no result has them"
        )
    for name, value in asdict(cost_of(inventory)).items():
        out.print(f"{name:>18}  {value:,}")
