"""Which further families vLLM serves, by its own class or by our plug-in, found out by trying a few kinds of compression of each.

``python -m bench.laws.served_families docs/serving.md`` tries all but those of ``bench.laws.served``, puts each outcome beside
the others in ``capabilities.json``, and writes the table of all that stand there. Families named behind the page are tried
alone, as ``FAMILY`` or ``FAMILY:KIND,KIND``.
"""

from __future__ import annotations

import json
import re
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.checkpoint.checkpoint import Checkpoint
from bench.families.family import family_named
from bench.laws.served import TOKENS, Trial, greedy_tokens, store, write
from bench.models.tiny import FAMILIES, RUNNABLE, tiny_checkpoint, tiny_tokens
from bench.serving.engine import Engine
from bench.serving.plugin import STOCK
from bench.serving.target import DENSE, DIFFERS, SERVED, TABLE, installed_engine
from bench.settings.timing_settings import TimingProtocol
from bench.timing.offline import TimingSession
from methods.framework.errors import MoebenchError

BEGIN, END = "<!-- families: begin -->", "<!-- families: end -->"
TRIED = ("base", "counts", "sublayer", "mapped", "constants", "channels", "factored", "packed4")
"""Kinds that are tried with every family; ``bench.laws.served`` tries all with those whose file says ``laws = "every"``."""
_NO_CLASS = "vLLM runs it by a class that our plug-in does not build"
_SHORT = ("family", "class", "whole", "counts", "dropped", "mapped", "vectors", "widths", "factors", "4 bits")


def attempt(session: TimingSession, family: str, kinds: Sequence[str], folder: Path, logs: Path) -> list[Trial]:
    """Try a family: first as transformers writes it, then each kind of compression, where our plug-in has its class.

    Args:
        session: answers with greedy tokens.
        family: name of an architecture.
        kinds: of ``TRIED``, in their order.
        folder: gets the checkpoints.
        logs: where the session's processes write.
    """
    source = Checkpoint.open(tiny_checkpoint(family, folder / "source", **family_named(family).file.published))
    found: list[Trial] = []
    for kind in kinds:
        if kind != "base" and family_named(family).architecture not in STOCK:
            break
        found.append(Trial(family, kind, _outcome(session, source, kind, folder / kind, logs)))
        if kind == "base" and found[-1].outcome != SERVED:
            break
    return found


def _outcome(session: TimingSession, source: Checkpoint, kind: str, out: Path, logs: Path) -> str:
    prompts = tiny_tokens(3, 12, seed=5).tolist()
    try:
        path = write(source, kind, out)
        agrees = session.greedy(path, prompts, TOKENS) == greedy_tokens(path, prompts)
        like = SERVED if session.engine.realisation(path) == "compressed" else DENSE
        return like if agrees else DIFFERS
    except MoebenchError as error:
        return _reason(str(error), logs)


def _reason(text: str, logs: Path) -> str:
    """Return a failure in one line; what a process of vLLM's own failed with stands in its log alone."""
    told, _, rest = text.splitlines()[0].partition(" (log: ")
    file = logs / rest.removesuffix(")")
    if "failed to be inspected" in told and rest and file.is_file():
        found = re.findall(r"\bModuleNotFoundError: .*", file.read_text(encoding="utf-8", errors="replace"))
        told = found[-1] if found else told
    return told[:200]


def table(cells: Mapping[str, Mapping[str, str]]) -> str:
    """Return outcomes as a markdown table, reasons as numbered notes below it.

    Args:
        cells: for each family the outcome of each kind that was tried.
    """
    notes: list[str] = []
    rows = [f"| {' | '.join(_SHORT)} |", "|---" * len(_SHORT) + "|"]

    def cell(told: str) -> str:
        if told in (SERVED, DENSE, DIFFERS):
            return told
        if told not in notes:
            notes.append(told)
        return f"no [{notes.index(told) + 1}]"

    for family, outcomes in sorted(cells.items()):
        whole, rule = outcomes.get("base") == SERVED, STOCK.get(family_named(family).architecture or "")
        untried = cell(_NO_CLASS) if whole and rule is None else "–"
        by = "–" if not whole else "plug-in" if rule is not None and rule.one_group else "stock"
        shown = [cell(outcomes[kind]) if kind in outcomes else untried for kind in TRIED]
        rows.append(f"| {family} | {by} | {' | '.join(shown)} |")
    return "\n".join([*rows, *(f"\n[{number}] {note}" for number, note in enumerate(notes, 1))])


def main(out: Path, asked: Sequence[str]) -> None:
    """Try families, store the outcomes, and put the table of all that are stored between its markers in ``out``.

    Args:
        out: page with the markers.
        asked: families to try, maybe with kinds; those that ``bench.laws.served`` leaves out where none is named.
    """
    others = [name for name in RUNNABLE if name not in FAMILIES]
    with (
        tempfile.TemporaryDirectory(prefix="moebench-logs-") as logs,
        TimingSession(TimingProtocol(dtype="float32"), logs=Path(logs)) as session,
    ):
        for one in asked or others:
            family, _, kinds = one.partition(":")
            with tempfile.TemporaryDirectory(prefix="moebench-served-") as folder:
                wanted = kinds.split(",") if kinds else TRIED
                found = attempt(session, family, wanted, Path(folder), Path(logs))
            store(found, session.engine)
            print(*(f"{trial.family} {trial.kind} {trial.outcome}" for trial in found), sep="\n", flush=True)
        write_table(out, session.engine)


def write_table(out: Path, runner: Engine, path: Path = TABLE) -> None:
    """Put the table of what is stored for an engine between its markers in ``out``.

    Args:
        out: page with the markers.
        runner: the engine.
        path: file of the outcomes.
    """
    name, version = installed_engine(runner) or ("vLLM", "")
    stored: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))
    own = {"engine": name, "version": version, "target": runner.name}
    cells: dict[str, dict[str, str]] = next((one["cells"] for one in stored if own.items() <= one.items()), {})
    text = out.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    shown = table({family: outcomes for family, outcomes in cells.items() if family not in FAMILIES})
    head = f"Tried with {name} {version}, float32, {TOKENS} greedy tokens of three prompts against transformers."
    out.write_text(f"{before}{BEGIN}\n\n{head}\n\n{shown}\n\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
