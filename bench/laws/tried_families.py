"""What works with which family, found by trying: ``python -m bench.laws.tried_families > docs/models.md`` takes a few minutes."""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from bench.families.family import family_named
from bench.families.known_families import family_files
from bench.laws.decisions import tried
from bench.laws.realised import TOLERANCE
from bench.models.tiny import RUNNABLE
from bench.serving.plugin import STOCK
from bench.serving.target import SERVED, TABLE
from methods.framework.errors import MoebenchError
from methods.registry import method_class, names

if TYPE_CHECKING:
    from bench.checkpoint.checkpoint import Checkpoint
    from methods.framework.stats import Stats

STEPS: Mapping[str, tuple[str, ...]] = {
    "select": ("counts",),
    "drop": ("sublayer", "block"),
    "merge": ("merged", "mapped"),
    "constants": ("constants",),
    "channels": ("channels",),
    "factor": ("factored", "shared_base", "bases"),
    "quantise": ("packed4", "packed_counts"),
}
"""Columns of the table, and the kinds of compression (``bench.serving.kinds``) that are written and loaded again for each."""

_HEAD = """# Models

Each family was tried on a tiny random model that transformers builds of it: `load` opens the files and compares them with
the model, `calibrate` measures every statistic in one pass, and each further column writes checkpoints and loads them in
transformers, whose logits must equal those of the plan realised on the original. `refuses` names methods that do not apply.
`serve` is what vLLM's build for processors does with it, from the tables of [serving](serving.md): `plug-in` where our classes
serve it with layers that differ, `stock` where vLLM serves it only as it is, `no` where not even that. `lines` are those of
the family's file; some begin with another family's.
This page is written by `python -m bench.laws.tried_families`.
"""

_TAIL = """
Families that transformers has no class for are planned and written, not run: {written}. Families without experts, of which
decoder layers and feed-forward sub-layers can be dropped for comparison: {dense}. Whatever has another `model_type`
is refused with its name and the families that are known; a config of a known family that asks for something its code does
not do is refused with the key. `moebench inspect` tells either from `config.json` alone.
"""


@dataclass(frozen=True, slots=True)
class Tried:
    """What happened to one family: for each column ``yes`` or the reason why not, and methods that do not apply."""

    family: str
    cells: Mapping[str, str]
    refuses: tuple[str, ...] = ()


def attempt(family: str, folder: Path) -> Tried:
    """Try every step on the tiny model of ``family``; files go to ``folder``."""
    from bench.calibration.calibrate import calibrate
    from bench.checkpoint.checkpoint import Checkpoint
    from bench.models.load import check_loadable
    from bench.models.tiny import tiny_checkpoint, tiny_tokens
    from bench.text.corpus import Corpus
    from methods.framework.stats import CATALOGUE

    cells: dict[str, str] = {}
    try:
        source = Checkpoint.open(tiny_checkpoint(family, folder / "source"))
        check_loadable(source)
        cells["load"] = "yes"
        stats = calibrate(source, Corpus.of(tiny_tokens().tolist(), "random ids"), set(CATALOGUE))
        cells["calibrate"] = "yes"
    except MoebenchError as error:
        step = "calibrate" if "load" in cells else "load"
        return Tried(family, {**cells, step: str(error)})
    for step, kinds in STEPS.items():
        reasons = [reason for kind in kinds if (reason := _written(source, kind, stats, folder / kind))]
        cells[step] = reasons[0] if reasons else "yes"
    methods = (tried(method_class(name)) for name in names())
    return Tried(family, cells, tuple(one.name for one in methods if one.refuse(source.inventory) is not None))


def _written(source: Checkpoint, kind: str, stats: Stats, out: Path) -> str | None:
    """Return why a checkpoint of ``kind`` could not be written and loaded again with the right logits, or None."""
    import torch

    from bench.applying.apply import apply
    from bench.applying.in_memory import realised
    from bench.models.load import load_model
    from bench.models.tiny import tiny_tokens
    from bench.serving.kinds import compression

    tokens = tiny_tokens(2, 16, seed=1)
    try:
        plan, model = compression(source, kind), load_model(source.path)
        with torch.no_grad():
            written = load_model(apply(source, plan, out, moments=stats))(tokens).logits
            with realised(model, source.inventory, plan, stats):
                inside = model(tokens).logits
    except MoebenchError as error:
        return f"{kind}: {error}"
    gap = float((written - inside).abs().max())
    return None if gap <= TOLERANCE else f"{kind}: logits differ by {gap:.1e}"


def page(
    found: Sequence[Tried],
    lines: Mapping[str, int],
    served: Mapping[str, str],
    written: Sequence[str],
    dense: Sequence[str],
) -> str:
    """Return the page.

    Args:
        found: what happened to each family.
        lines: of each family's file.
        served: what vLLM does with each family.
        written: families that transformers has no class for.
        dense: families without experts.
    """
    columns = ("load", "calibrate", *STEPS)
    reasons: list[str] = []
    rows = [f"| family | {' | '.join(columns)} | refuses | serve | lines |", "|---" * (len(columns) + 4) + "|"]
    for one in found:
        cells = []
        for column in columns:
            told = one.cells.get(column, "not reached")
            if told not in ("yes", "not reached"):
                if told not in reasons:
                    reasons.append(told)
                told = f"no [{reasons.index(told) + 1}]"
            cells.append(told)
        serve = served.get(one.family, "not tried")
        rows.append(
            f"| {one.family} | {' | '.join(cells)} | {', '.join(one.refuses) or 'none'} | {serve} | {lines[one.family]} |"
        )
    notes = [f"{number}. {reason}" for number, reason in enumerate(reasons, 1)]
    return "\n".join(
        [
            _HEAD,
            *rows,
            *(["", *notes] if notes else []),
            _TAIL.format(written=", ".join(written), dense=", ".join(dense)),
        ]
    )


def file_lines() -> dict[str, int]:
    """Return the lines of the file of each family, by its name."""
    texts = [path.read_text(encoding="utf-8").splitlines() for path in family_files()]
    named = {next(line for line in text if line.startswith("name = ")).split('"')[1]: len(text) for text in texts}
    return dict(sorted(named.items()))


def served_by_vllm() -> dict[str, str]:
    """Return what vLLM's build for processors does with each family, as ``bench.laws.served`` and its sibling found it."""
    stored = json.loads(TABLE.read_text(encoding="utf-8"))
    cells: dict[str, dict[str, str]] = next(one["cells"] for one in stored if one["target"] == "vllm-cpu")
    return {family: _serving(family, outcomes) for family, outcomes in cells.items()}


def _serving(family: str, outcomes: Mapping[str, str]) -> str:
    if outcomes.get("base") != SERVED:
        return "no"
    return "plug-in" if family_named(family).architecture in STOCK else "stock"


def main() -> None:
    """Try all families and print the page."""
    found = []
    for family in RUNNABLE:
        with tempfile.TemporaryDirectory(prefix="moebench-families-") as folder:
            found.append(attempt(family, Path(folder)))
        print(
            f"{family}: {', '.join(step for step, told in found[-1].cells.items() if told == 'yes')}", file=sys.stderr
        )
    lines = file_lines()
    dense = [name for name in lines if family_named(name).file.dense]
    print(
        page(found, lines, served_by_vllm(), [name for name in lines if name not in (*RUNNABLE, *dense)], dense), end=""
    )


if __name__ == "__main__":
    main()
