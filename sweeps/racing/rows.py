"""Results of races as rows of one CSV file: ``python -m sweeps.racing.rows FILE... --store FOLDER --csv OUT``."""

from __future__ import annotations

import argparse
import csv
import io
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bench.store.atomic import write_atomically
from methods.framework.errors import ConfigError, MoebenchError
from methods.framework.outside import an_object, read_json, read_text
from sweeps.racing.race_config import Race, cell_file, load_race
from sweeps.space.levels import Reals

_DIGITS = 5
COLUMNS = ("race", "model", "seed", "contender", "search", "held_out", "tokens", "budget", "evaluations", "seconds")
NESTED = ("levels", "curve", "held_out_windows")


@dataclass(frozen=True)
class Row:
    """One run.

    Args:
        race: name of the race.
        model: name of the model.
        seed: of text and sampler.
        contender: who ran.
        search: divergence of the best plan on the text of the search.
        windows_N: divergence of that plan on each held-out window.
        budget: tokens that could be spent.
        evaluations: full evaluations that were made.
        seconds: CPU seconds.
        curve: tokens spent and best divergence so far, at each improvement.
    """

    race: str
    model: str
    seed: int
    contender: str
    search: float
    windows_N: Reals
    budget: float
    evaluations: int
    seconds: float
    curve: tuple[tuple[float, float], ...]

    @property
    def held_out(self) -> float:
        """Mean divergence on held-out windows."""
        return float(self.windows_N.mean())


def finished(race: Race, store: Path) -> Iterator[dict[str, Any]]:
    """Yield the results of a race that lie in a store."""
    for model in race.models:
        for seed in race.seeds:
            for contender in race.contenders:
                path = cell_file(race, Path(model).name, seed, contender, store)
                if path.is_file():
                    yield an_object(read_json(path, ConfigError), str(path), ConfigError)


def as_csv(documents: Sequence[dict[str, Any]]) -> str:
    """Return one line for each result; lists are JSON."""
    text = io.StringIO()
    writer = csv.DictWriter(text, (*COLUMNS, *NESTED), lineterminator="\n")
    writer.writeheader()
    for document in documents:
        plain = {name: _short(document[name]) for name in COLUMNS}
        nested = {name: json.dumps(_short(document[name]), separators=(",", ":")) for name in NESTED}
        writer.writerow({**plain, **nested})
    return text.getvalue()


def read_rows(path: Path) -> list[Row]:
    """Return the rows of a CSV file.

    Raises:
        ConfigError: it cannot be read, or a cell is not what it should be.
    """
    try:
        return [
            Row(
                race=line["race"],
                model=line["model"],
                seed=int(line["seed"]),
                contender=line["contender"],
                search=float(line["search"]),
                windows_N=np.array(json.loads(line["held_out_windows"]), dtype=np.float64),
                budget=float(line["budget"]),
                evaluations=int(line["evaluations"]),
                seconds=float(line["seconds"]),
                curve=tuple((float(tokens), float(value)) for tokens, value in json.loads(line["curve"])),
            )
            for line in csv.DictReader(io.StringIO(read_text(path, ConfigError)))
        ]
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(
            f"{path} is not a file of `python -m sweeps.racing.rows` ({error}); write it again"
        ) from error


def _short(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.{_DIGITS}g}")
    return [_short(one) for one in value] if isinstance(value, list) else value


def main(arguments: Sequence[str] | None = None) -> int:
    """Gather the finished runs of races."""
    parser = argparse.ArgumentParser(prog="python -m sweeps.racing.rows", description="Gather the results of races.")
    parser.add_argument("races", type=Path, nargs="+", help="YAML files of races")
    parser.add_argument("--store", type=Path, required=True, help="folder of the store")
    parser.add_argument("--csv", type=Path, required=True, help="file to write")
    options = parser.parse_args(arguments)
    try:
        documents = [one for path in options.races for one in finished(load_race(path), options.store)]
        write_atomically(options.csv, as_csv(documents))
    except MoebenchError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{len(documents)} runs in {options.csv}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
