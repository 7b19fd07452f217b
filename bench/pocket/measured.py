"""Print the measured numbers of the stored models as Markdown: ``python -m bench.pocket.measured [README]``."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from statistics import fmean
from typing import Any

from bench.pocket import DOMAINS, POCKET_MODELS, pocket_path

BEGIN = "<!-- measured: written by python -m bench.pocket.measured -->"
END = "<!-- end of measured -->"


def _row(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def tables() -> str:
    """Return one table of sizes and training, one of accuracies, one of random removal."""
    records: dict[str, dict[str, Any]] = {}
    for name in POCKET_MODELS:
        records[name] = json.loads((pocket_path(name) / "training.json").read_text(encoding="utf-8"))
        records[name]["megabytes"] = (pocket_path(name) / "model.safetensors").stat().st_size / 1e6
    head = [_row(["", *POCKET_MODELS]), _row(["---", *["---:"] * len(records)])]
    every = list(records.values())
    lines = [
        *head,
        _row(["parameters", *(f"{record['parameters']:,}" for record in every)]),
        _row(["weights, MB", *(f"{record['megabytes']:.1f}" for record in every)]),
        _row(["training tokens", *(f"{record['tokens']:,}" for record in every)]),
        _row(["training, CPU s", *(f"{record['cpu_seconds']:.0f}" for record in every)]),
        _row(["training, wall s", *(f"{record['wall_seconds']:.0f}" for record in every)]),
        _row(["threads", *(str(record["threads"]) for record in every)]),
        _row(["final loss", *(f"{record['final_loss']:.3f}" for record in every)]),
        _row(["load entropy, lowest layer", *(f"{min(record['load_entropy']):.3f}" for record in every)]),
        _row(["domain specialisation, mean", *(f"{fmean(record['domain_specialisation']):.3f}" for record in every)]),
        "",
        *head,
        *(_row([domain, *(f"{record['accuracy'][domain]:.3f}" for record in every)]) for domain in DOMAINS),
        _row(["**mean**", *(f"{record['mean_accuracy']:.3f}" for record in every)]),
        "",
        "Mean accuracy after routed experts were removed at random, mean of three draws:",
        "",
        *head,
    ]
    for index, row in enumerate(every[0]["random_removal"]):
        means = (f"{record['random_removal'][index]['mean_accuracy']:.3f}" for record in every)
        lines.append(_row([f"{row['removed']:.0%} removed", *means]))
    return "\n".join(lines)


def main() -> None:
    """Print the tables, or put them between the marks of a file."""
    if len(sys.argv) == 1:
        print(tables())
        return
    path = Path(sys.argv[1])
    before, rest = path.read_text(encoding="utf-8").split(BEGIN)
    after = rest.split(END)[1]
    path.write_text(f"{before}{BEGIN}\n{tables()}\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
