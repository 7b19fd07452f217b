"""Run a race: ``python -m sweeps.racing FILE --store FOLDER``; what is finished is not run again."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from bench.store.store import write_json
from methods.framework.errors import MoebenchError
from sweeps.objective import ByWindow
from sweeps.objectives.kl import Kl
from sweeps.opening import open_resident
from sweeps.planner import LayerPlanner
from sweeps.racing.contenders import run
from sweeps.racing.race_config import Race, cell_file, load_race
from sweeps.racing.track import Track
from sweeps.trials import planner_for


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the cells of a race that are missing."""
    parser = argparse.ArgumentParser(prog="python -m sweeps.racing", description="Run a race of searches.")
    parser.add_argument("race", type=Path, help="YAML file of the race")
    parser.add_argument("--store", type=Path, required=True, help="folder of the store")
    parser.add_argument("--model", help="only models whose name contains this")
    options = parser.parse_args(arguments)
    try:
        race = load_race(options.race)
        for model in race.models:
            if options.model is None or options.model in Path(model).name:
                run_model(race, model, options.store)
    except MoebenchError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def run_model(race: Race, model: str, store: Path) -> None:
    """Run every contender with every seed on one model.

    Args:
        race: its settings.
        model: one of its models.
        store: folder of the store; results lie in ``races/NAME``.
    """
    name = Path(model).name
    missing = [
        (seed, contender)
        for seed in race.seeds
        for contender in race.contenders
        if not cell_file(race, name, seed, contender, store).is_file()
    ]
    if not missing:
        return
    config = race.sweep(model)
    resident = open_resident(config, store, race.held_out_windows)
    planner = planner_for(config, resident)
    assert isinstance(planner, LayerPlanner)
    judge = Kl(kind="kl", windows=race.held_out_windows).by_window(resident)
    for seed, own in groupby(missing, key=lambda one: one[0]):
        track = Track(race, planner, resident, seed, store / "cache" / "objectives")
        for _, contender in own:
            document = {"race": race.name, "model": name, **_result(track, contender, judge)}
            write_json(cell_file(race, name, seed, contender, store), document)
            print(
                f"{race.name} {name} seed {seed} {contender}: {document['search']:.4f}, held out "
                f"{document['held_out']:.4f}, {document['evaluations']} evaluations, {document['seconds']:.1f} CPU s",
                flush=True,
            )


def _result(track: Track, contender: str, judge: ByWindow) -> dict[str, Any]:
    start = time.process_time()
    run(contender, track)
    seconds = time.process_time() - start
    assert track.best is not None
    windows_N = track.judged(judge)
    return {
        "seed": track.seed,
        "contender": contender,
        "search": track.best[0],
        "held_out": float(windows_N.mean()),
        "held_out_windows": [round(float(value), 7) for value in windows_N],
        "tokens": track.tokens,
        "budget": track.budget,
        "evaluations": track.evaluations,
        "curve": [[tokens, value] for tokens, value in track.curve],
        "levels": list(track.best[1]),
        "seconds": round(seconds, 3),
    }


if __name__ == "__main__":
    sys.exit(main())
