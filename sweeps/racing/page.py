"""Tables and figure of races: ``python -m sweeps.racing.page CSV --page docs/search.md --figures FOLDER``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from analysis.drawing import canvas, render, style
from analysis.palette import LIGHT, NEUTRAL
from bench.store.atomic import write_atomically
from methods.framework.errors import ConfigError, MoebenchError
from methods.framework.outside import read_text
from sweeps.racing.rows import Row, read_rows
from sweeps.racing.standings import Standing, grouped, standings

BEGIN, END = "<!-- race: begin -->", "<!-- race: end -->"
REFERENCES = ("shapes_model", "table_model")
"""Contenders that others are compared with: the first of these that ran in a race, which is the default there."""
TITLES = {
    "uniform": "uniform",
    "table": "table + DP",
    "table_local": "table + DP, then local",
    "table_model": "table + DP, then local with a model",
    "shapes_model": "shapes, then local with a model",
    "table_cmaes": "table + DP, then CMA-ES",
    "local": "local with a model",
    "tpe": "TPE",
    "cmaes": "CMA-ES",
    "nsga2": "NSGA-II",
    "gp": "GP",
    "evoesap": "EvoESAP",
    "evopress": "EvoPress",
    "evopress_staged": "EvoPress, in stages",
    "rco": "RCO",
}


def reference(contenders: Collection[str]) -> str:
    """Return the contender that others of a race are compared with."""
    return next((name for name in REFERENCES if name in contenders), REFERENCES[-1])


def tables(rows: Sequence[Row]) -> str:
    """Return one table for each race: contenders by models, held-out median and the difference to the reference."""
    by_race: dict[str, dict[str, list[Standing]]] = {}
    for (race, model), group in grouped(rows).items():
        by_race.setdefault(race, {})[model] = standings(group, reference(group))
    parts = [_table(race, models) for race, models in by_race.items()]
    return "\n\n".join([*parts, _wins(by_race)])


def _table(race: str, models: Mapping[str, Sequence[Standing]]) -> str:
    names = list(models)
    found = {model: {one.contender: one for one in own} for model, own in models.items()}
    order = sorted(
        {contender for own in found.values() for contender in own},
        key=lambda name: float(np.mean([np.log(own[name].held_out) for own in found.values() if name in own])),
    )
    lines = [f"| {race} | " + " | ".join(names) + " |", "|---|" + "---|" * len(names)]
    against = reference(order)
    for contender in order:
        cells = [_cell(own[contender], against) if contender in own else "" for own in found.values()]
        lines.append(f"| {TITLES[contender]} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cell(one: Standing, against: str) -> str:
    numbers = f"{one.search:.4f} / {one.held_out:.4f}"
    if one.contender == against:
        return f"{numbers} ({one.seeds} seeds)"
    mark = " **worse**" if one.worse else " **better**" if one.better else ""
    return f"{numbers}, {100 * one.more:+.0f} % [{100 * one.low:+.0f}, {100 * one.high:+.0f}]{mark}"


def _wins(by_race: Mapping[str, Mapping[str, Sequence[Standing]]]) -> str:
    """Return how often each contender is above the reference, and separated from it."""
    groups = [{one.contender: one for one in own} for models in by_race.values() for own in models.values()]
    lines = [
        "| against the default there | median above | separated above | separated below | of |",
        "|---|---|---|---|---|",
    ]
    for contender, title in TITLES.items():
        pairs = [(own[contender], own[reference(own)]) for own in groups if contender in own and reference(own) in own]
        pairs = [(one, other) for one, other in pairs if one is not other]
        if pairs:
            above = sum(one.held_out > other.held_out for one, other in pairs)
            worse, better = sum(one.worse for one, _ in pairs), sum(one.better for one, _ in pairs)
            lines.append(f"| {title} | {above} | {worse} | {better} | {len(pairs)} |")
    return "\n".join(lines)


def convergence(rows: Sequence[Row]) -> dict[str, bytes]:
    """Return the figure, by kind: median over seeds of the best divergence so far, against the tokens spent."""
    groups = grouped(rows)
    places = panels_of(list(groups))
    down, across_models = (1 + max(place[axis] for place in places.values()) for axis in (0, 1))
    with style():
        figure = canvas(3.3 * across_models + 1.6, 2.5 * down + 0.4)
        panels = figure.subplots(down, across_models, squeeze=False)
        handles: dict[str, Any] = {}
        for (race, model), group in groups.items():
            row, column = places[race, model]
            axes = panels[row][column]
            for contender, own in group.items():
                across, up = _median(list(own.values()))
                colour, dashes = _look(contender)
                handles[TITLES[contender]] = axes.step(
                    across, up, where="post", color=colour, ls=dashes, lw=2.0 if contender == reference(group) else 1.1
                )[0]
            axes.set_title(f"{race}, {model}", fontsize=8)
            axes.set_yscale("log")
            for ticks in (axes.yaxis.set_major_formatter, axes.yaxis.set_minor_formatter):
                ticks(lambda value, place: f"{value:g}")
            axes.tick_params(which="both", labelsize=7)
            if (row + 1, column) not in places.values():
                axes.set_xlabel("tokens, % of what may be spent", fontsize=8)
            if column == 0:
                axes.set_ylabel("KL on the text of the search", fontsize=8)
        for row in panels:
            for axes in row:
                axes.set_visible(axes.has_data())
        names = [title for title in TITLES.values() if title in handles]
        figure.legend([handles[name] for name in names], names, loc="outside right upper", fontsize=7, frameon=False)
        return render(figure, ("png", "svg"))


def panels_of(runs: Sequence[tuple[str, str]]) -> dict[tuple[str, str], tuple[int, int]]:
    """Return row and column of each race and model: a row for each race; races of one model share rows.

    Args:
        runs: names of race and model, in their order.
    """
    models: dict[str, list[str]] = {}
    for race, model in runs:
        models.setdefault(race, []).append(model)
    widest = max(len(own) for own in models.values())
    places: dict[tuple[str, str], tuple[int, int]] = {}
    row, free = -1, 0  # columns that are left of a row of races of one model
    for race, own in models.items():
        if len(own) > 1 or not free:
            row, free = row + 1, widest if len(own) == 1 else 0
        first = widest - free if free else 0
        places |= {(race, model): (row, first + column) for column, model in enumerate(own)}
        free = max(0, free - 1)
    return places


def _look(contender: str) -> tuple[str, Any]:
    """Return colour and dashes of a contender: as many colours as the palette has, then dashed."""
    if contender == "uniform":
        return NEUTRAL, "-"
    place = [name for name in TITLES if name != "uniform"].index(contender)
    return LIGHT[place % len(LIGHT)], "-" if place < len(LIGHT) else (0, (3, 1.5))


def _median(rows: Sequence[Row]) -> tuple[list[float], list[float]]:
    """Return percent of the budget and the median over seeds of the best so far, from where every seed has one."""
    places = sorted({tokens / row.budget for row in rows for tokens, _ in row.curve} | {1.0})
    found = []
    for place in places:
        best = [min((v for t, v in row.curve if t / row.budget <= place), default=np.nan) for row in rows]
        found.append(float(np.median(best)))
    return [100 * place for place in places], found


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the tables into a page, between its two marks, and draw the figure."""
    parser = argparse.ArgumentParser(prog="python -m sweeps.racing.page", description="Tables and figure of races.")
    parser.add_argument("csv", type=Path, help="of python -m sweeps.racing.rows")
    parser.add_argument("--page", type=Path, required=True, help="page with the marks of the tables")
    parser.add_argument("--figures", type=Path, required=True, help="folder of the figure")
    options = parser.parse_args(arguments)
    try:
        rows = read_rows(options.csv)
        page = read_text(options.page, ConfigError)
        if BEGIN not in page or END not in page:
            raise ConfigError(f"{options.page} lacks the marks {BEGIN} and {END}, between which the tables go")
        head, _, rest = page.partition(BEGIN)
        write_atomically(options.page, f"{head}{BEGIN}\n\n{tables(rows)}\n\n{END}{rest.partition(END)[2]}")
        for kind, content in convergence(rows).items():
            write_atomically(options.figures / f"convergence.{kind}", content)
    except MoebenchError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
