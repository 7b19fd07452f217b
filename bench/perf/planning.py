"""How long every method takes to plan at the sizes of real models, and to count and to store its plan.

    python -m bench.perf.planning [--size 48x128] [--methods NAME,...] [--tokens 4096] [--json results.json]

No model is read: shapes come from a config, statistics are drawn (``bench.perf.drawn_stats``). The file of results is written
after each method, and the same command goes on with those that it lacks. Leaves with status 1 where a bar is missed.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

from rich.console import Console
from rich.table import Table

from bench.families.family import family_named
from bench.perf.drawn_stats import Clock, DrawnProbe, drawn_stats
from bench.store.store import write_json
from methods.framework.cost import cost
from methods.framework.errors import RefusedError
from methods.framework.inventory import Inventory
from methods.framework.plan import Plan
from methods.registry import method, names


@dataclass(frozen=True, slots=True)
class Size:
    """A model by its config, and what plans of it may take.

    Args:
        family: of the config.
        config: in the words of the family.
        seconds: CPU seconds of a plan.
        cost: CPU seconds of counting one.
        bytes: of its file.
    """

    family: str
    config: dict[str, Any]
    seconds: float
    cost: float
    bytes: float


SIZES = {
    "48x128": Size(
        "qwen3_moe",
        {
            "num_hidden_layers": 48,
            "num_experts": 128,
            "num_experts_per_tok": 8,
            "hidden_size": 2048,
            "moe_intermediate_size": 768,
            "intermediate_size": 6144,
            "num_attention_heads": 32,
            "num_key_value_heads": 4,
            "head_dim": 128,
            "vocab_size": 151936,
            "norm_topk_prob": True,
            "tie_word_embeddings": False,
            "torch_dtype": "bfloat16",
            "model_type": "qwen3_moe",
        },
        seconds=60.0,
        cost=0.010,
        bytes=1e6,
    ),
    "61x384": Size(
        "kimi_k2",
        {
            "num_hidden_layers": 61,
            "n_routed_experts": 384,
            "num_experts_per_tok": 8,
            "hidden_size": 7168,
            "moe_intermediate_size": 2048,
            "intermediate_size": 18432,
            "num_attention_heads": 64,
            "num_key_value_heads": 64,
            "q_lora_rank": 1536,
            "kv_lora_rank": 512,
            "qk_nope_head_dim": 128,
            "qk_rope_head_dim": 64,
            "v_head_dim": 128,
            "n_shared_experts": 1,
            "first_k_dense_replace": 1,
            "norm_topk_prob": True,
            "scoring_func": "sigmoid",
            "topk_method": "noaux_tc",
            "hidden_act": "silu",
            "vocab_size": 163840,
            "tie_word_embeddings": False,
            "torch_dtype": "bfloat16",
            "model_type": "kimi_k2",
        },
        seconds=600.0,
        cost=math.inf,
        bytes=math.inf,
    ),
}
"""Shapes of Qwen3-30B-A3B and of Kimi-K2, as their config files state them."""


def model_of(size: Size) -> Inventory:
    """Return what a checkpoint of this size contains."""
    return family_named(size.family).inventory(size.config)


def measured(name: str, inventory: Inventory, tokens: int) -> dict[str, Any]:
    """Return what planning with a method takes: seconds, those of counting the plan, and its bytes; or why it refuses.

    Args:
        name: of the method, which is tried with its own settings.
        inventory: the model.
        tokens: sampled tokens.
    """
    chosen, clock = method(name), Clock()
    stats = drawn_stats(inventory, tokens, clock)
    start = clock.seconds()
    try:
        plan = chosen.plan(inventory, stats, DrawnProbe(inventory) if chosen.probing else None)
    except RefusedError as error:
        return {"method": name, "refused": str(error), "seconds": clock.seconds() - start}
    seconds = clock.seconds() - start
    return {"method": name, "seconds": seconds, "bytes": _file_bytes(plan), "cost": _counting(plan, inventory)}


def _file_bytes(plan: Plan) -> int:
    """Return the bytes of the plan's file."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "plan.json"
        write_json(path, plan.document())
        return path.stat().st_size


def _counting(plan: Plan, inventory: Inventory) -> float:
    """Return the CPU seconds of counting what ``plan`` costs, the median of five."""
    found = []
    for _ in range(5):
        start = time.process_time()
        cost(plan, inventory)
        found.append(time.process_time() - start)
    return median(found)


def kept_rows(path: Path | None, size: str, tokens: int) -> list[dict[str, Any]]:
    """Return what was measured before, under the same size and number of tokens.

    Args:
        path: file of results; None or a missing one holds nothing.
        size: name of the size.
        tokens: sampled tokens.
    """
    if path is None or not path.exists():
        return []
    found = json.loads(path.read_text())
    rows: list[dict[str, Any]] = found["rows"] if (found["size"], found["tokens"]) == (size, tokens) else []
    return rows


def missed(row: dict[str, Any], size: Size) -> list[str]:
    """Return the bars that a row misses."""
    bars = {"seconds": size.seconds, "cost": size.cost, "bytes": size.bytes}
    return [name for name, bar in bars.items() if name in row and row[name] > bar]


def main() -> None:
    """Measure, print a table, and say whether all bars are met."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", choices=sorted(SIZES), default="48x128")
    parser.add_argument("--methods", default=",".join(names()), help="names with commas between")
    parser.add_argument("--tokens", type=int, default=4096, help="sampled tokens")
    parser.add_argument("--json", type=Path, help="write the measurements here, after each; those that are there stay")
    asked = parser.parse_args()
    size = SIZES[asked.size]
    inventory = model_of(size)
    rows = kept_rows(asked.json, asked.size, asked.tokens)
    for name in asked.methods.split(","):
        if name in {row["method"] for row in rows}:
            continue
        rows.append(measured(name, inventory, asked.tokens))
        print(rows[-1], file=sys.stderr, flush=True)
        if asked.json:
            write_json(asked.json, {"size": asked.size, "tokens": asked.tokens, "rows": rows})
    table = Table(title=f"{asked.size}, {asked.tokens} sampled tokens, one thread, CPU seconds")
    for column in ("method", "plan, s", "cost, ms", "file, kB", "bars"):
        table.add_column(column, justify="left" if column in ("method", "bars") else "right")
    for row in sorted(rows, key=lambda row: -row["seconds"]):
        if "refused" in row:
            table.add_row(row["method"], f"{row['seconds']:.2f}", "", "", f"refuses: {row['refused']}")
            continue
        bars = ", ".join(missed(row, size))
        shown = (f"{row['seconds']:.2f}", f"{1e3 * row['cost']:.1f}", f"{row['bytes'] / 1e3:.0f}")
        table.add_row(row["method"], *shown, f"MISSED: {bars}" if bars else "met")
    Console(width=None if sys.stdout.isatty() else 150).print(table)
    sys.exit(any(missed(row, size) for row in rows))


if __name__ == "__main__":
    main()
