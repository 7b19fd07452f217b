"""``moebench inspect``: what a checkpoint contains, read from its config and its files' headers, or from its config alone."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict
from itertools import groupby
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from bench.checkpoint.checkpoint import Checkpoint
from bench.checkpoint.outline import has_weights, outline
from bench.checkpoint.source import found_source
from bench.commands.options import Model, RevisionOption
from bench.commands.printing import console
from methods.framework.cost import cost_of

if TYPE_CHECKING:
    from methods.framework.inventory import Inventory


def inspect(
    model: Model,
    revision: RevisionOption = None,
    methods: Annotated[bool, typer.Option("--methods", help="also tell what each method would need")] = False,
) -> None:
    """Print runs of equal layers, the router and the cost of a checkpoint; config.json alone suffices."""
    out = console()
    source = found_source(model, revision)
    folder = source.folder
    if source.hub is None and (folder / "config.json").exists() and not has_weights(folder):
        found = outline(folder)
        inventory, stored = found.inventory, found.stored
        _print_inventory(out, inventory, source.name)
        against = (
            "config.json alone"
            if found.compared is None
            else f"config.json and the {found.compared} names of the index"
        )
        out.print(f"told by {against}; there are no weights")
        if passed := found.family.passed(found.config):
            out.print(
                f"a language model within a larger one, whose own tensors ({', '.join(passed)}) are not counted below"
            )
        if stored is not None:
            out.print(f"its files hold weights as {stored}; bytes below are those of {_types(inventory)}")
    else:
        checkpoint = Checkpoint.of(source)
        inventory = checkpoint.inventory
        _print_inventory(out, inventory, checkpoint.name)
        if checkpoint.revision is not None:
            out.print(
                f"commit {checkpoint.revision} of the hub's {checkpoint.name}; no weight was fetched to tell this"
            )
        kinds = Counter(entry.stored.format for entry in inventory.tensors() if entry.stored is not None)
        for kind, number in kinds.items():
            out.print(
                f"quantised source: {number} matrices are stored as {kind}, and read as the values they stand for"
            )
        if checkpoint.left_out:
            number, first = len(checkpoint.left_out), checkpoint.left_out[0]
            out.print(
                f"left out: {number} tensors of layers that only predict further tokens, {first} the first; no result has them"
            )
    for name, value in asdict(cost_of(inventory)).items():
        out.print(f"{name:>18}  {value:,}")
    if methods:
        _print_demands(out, inventory)


def _print_inventory(out: Console, inventory: Inventory, name: str) -> None:
    """Print runs of equal layers and the router."""
    table = Table("layers", "sub-layer", "experts", "top-k", title=f"{name} ({inventory.family})")
    for shape, run in groupby(enumerate(inventory.layers), key=lambda one: (one[1].mlp, one[1].experts, one[1].top_k)):
        indices = [index for index, _ in run]
        layers = f"{indices[0]}-{indices[-1]}" if len(indices) > 1 else str(indices[0])
        table.add_row(layers, *map(str, shape))
    out.print(table)
    out.print(inventory.router)


def _types(inventory: Inventory) -> str:
    return " and ".join(sorted({entry.dtype for entry in inventory.tensors()}))


def _print_demands(out: Console, inventory: Inventory) -> None:
    """Print for each method how the model has to run and what its statistics take, or why it does not apply."""
    from bench.calibration.demands import demand
    from methods.registry import method_class, names

    table = Table("method", "the model runs", "statistics in bytes")
    for name in names():
        needed = demand(method_class(name)(), inventory)
        if needed.refusal is not None:
            table.add_row(name, f"refused: {needed.refusal}", "")
        else:
            table.add_row(name, needed.runs, f"{needed.stat_bytes:,}")
    out.print(table)
