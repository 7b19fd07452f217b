"""The frontier as a figure: predicted damage against the share of the source that stays."""

from __future__ import annotations

from collections.abc import Sequence

from analysis.drawing import canvas, render, short, style
from analysis.palette import LIGHT, NEUTRAL
from sweeps.solving.solve import Curve, Solution
from sweeps.solving.table import Table


def draw(table: Table, found: Curve, solutions: Sequence[Solution] = ()) -> dict[str, bytes]:
    """Return the figure as PNG and SVG, by kind.

    Args:
        table: of the curve.
        found: the frontier.
        solutions: others to be marked, those of budgets.
    """
    source = max(table.source[found.quantity], 1)

    def kept(one: Solution) -> float:
        return 100 * one.sizes[found.quantity] / source

    with style():
        figure = canvas(6.4, 4.2)
        axes = figure.subplots()
        across, up = [kept(one) for one in found.solutions], [one.damage for one in found.solutions]
        axes.step(across, up, where="post", color=LIGHT[0], lw=1.4, label="best plan of each size")
        if equal := alike(table):
            places = [kept(one) for one in equal], [one.damage for one in equal]
            axes.plot(*places, "s", ms=4, mfc="none", color=NEUTRAL, label="the same option in every unit")
        if solutions:
            places = [kept(one) for one in solutions], [one.damage for one in solutions]
            axes.plot(*places, "o", ms=5, color=LIGHT[1], label="best within the budget")
        axes.set_title(short(f"{table.study}: predicted damage against size", 60))
        axes.set_xlabel(f"{found.quantity.replace('_', ' ')} kept, % of the source's")
        axes.set_ylabel(f"predicted damage, in {table.objective}")
        if any(value > 0 for value in up) and min(up) >= 0:
            axes.set_ylim(bottom=0)
        axes.legend(fontsize=7.5)
        return render(figure, ("png", "svg"))


def alike(table: Table) -> list[Solution]:
    """Return the solutions in which every unit has the same settings, where these are measured; ascending in size."""
    first, found = table.units[0], []
    for option in first.options:
        levels = [
            next((level for level, one in enumerate(unit.options) if one.settings == option.settings), None)
            for unit in table.units
        ]
        known = [level for level in levels if level is not None]
        damages = [option.damage for option in table.chosen(known)] if len(known) == len(levels) else [None]
        if all(damage is not None for damage in damages):
            found.append(Solution(tuple(known), sum(damage or 0.0 for damage in damages), table.sizes(known)))
    return found
