"""What vLLM serves of our checkpoints, found out by trying: every kind of compression on a tiny model of every family.

``python -m bench.laws.served docs/serving.md`` writes the table for the vLLM and the device at hand there, and as
``capabilities.json`` beside this file, which plans are checked against (``bench.serving.target``).
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.checkpoint.checkpoint import Checkpoint
from bench.serving.engine import Engine
from bench.serving.kinds import KINDS, compression
from bench.serving.target import DENSE, DIFFERS, SERVED, TABLE, installed_engine
from bench.settings.timing_settings import TimingProtocol
from bench.store.atomic import write_atomically
from bench.timing.offline import TimingSession
from methods.framework.errors import MoebenchError

TOKENS = 24
_OF_EACH_FAMILY = ("counts", "constants")
_BESIDES = {("deepseek_v2", "sublayer"), ("deepseek_v3", "block")}
BEGIN, END = "<!-- table: begin -->", "<!-- table: end -->"


def write(checkpoint: Checkpoint, kind: str, out: Path) -> Path:
    """Write a tiny checkpoint compressed in one way, and return its folder.

    Args:
        checkpoint: the source.
        kind: name of the compression, one of ``bench.serving.kinds.KINDS``.
        out: folder to write to.
    """
    from bench.applying.apply import apply
    from bench.calibration.calibrate import calibrate
    from bench.models.tiny import tiny_tokens
    from bench.text.corpus import Corpus

    plan = compression(checkpoint, kind)
    corpus = Corpus.of(tiny_tokens().tolist(), "random ids")
    moments = calibrate(checkpoint, corpus, plan.moments) if plan.moments else None
    return apply(checkpoint, plan, out, moments=moments)


def greedy_tokens(path: Path, prompts: Sequence[Sequence[int]], tokens: int = TOKENS) -> list[list[int]]:
    """Return ``tokens`` greedy tokens after each prompt as transformers gives them, without batch and without cache.

    Args:
        path: folder of the checkpoint.
        prompts: token ids.
        tokens: how many tokens follow each prompt.
    """
    import torch

    from bench.models.load import load_model

    model = load_model(path)
    answers = []
    for prompt in prompts:
        ids = list(prompt)
        for _ in range(tokens):
            with torch.no_grad():
                ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
        answers.append(ids[len(prompt) :])
    return answers


def covering(families: Sequence[str]) -> set[tuple[str, str]]:
    """Return pairs of family and kind that stand for all of them.

    Every kind is tried with at least two families, and every family with several kinds. Kinds that run code of each family's
    own are tried with all: expert counts that differ (correction bias, groups), and maps, whose router redoes what the
    family's own does. Families whose first layers are dense lose a sub-layer and a block besides.

    Args:
        families: in the order in which they take turns.
    """
    others = [kind for kind in KINDS if kind not in _OF_EACH_FAMILY]
    count = len(families)
    pairs = {(family, kind) for kind in _OF_EACH_FAMILY for family in families}
    pairs |= {(families[turn % count], kind) for turn, kind in enumerate(others)}
    pairs |= {(families[(turn + 1 + turn // count % (count - 1)) % count], kind) for turn, kind in enumerate(others)}
    return pairs | {pair for pair in _BESIDES if pair[0] in families}


@dataclass(frozen=True, slots=True)
class Trial:
    """What happened to one kind of compression in one family: ``served``, ``dense``, ``differs`` or the reason of a failure."""

    family: str
    kind: str
    outcome: str


def trials(session: TimingSession, progress: Callable[[Trial], None] = lambda trial: None) -> list[Trial]:
    """Try every kind in every family, in float32, and return the outcomes."""
    from bench.models.tiny import FAMILIES, tiny_checkpoint, tiny_tokens

    prompts = tiny_tokens(3, 12, seed=5).tolist()
    found = []
    with tempfile.TemporaryDirectory(prefix="moebench-serving-") as folder:
        for family in FAMILIES:
            checkpoint = Checkpoint.open(tiny_checkpoint(family, Path(folder) / family))
            for kind in KINDS:
                try:
                    path = write(checkpoint, kind, Path(folder) / f"{family}-{kind}")
                    agrees = session.greedy(path, prompts, TOKENS) == greedy_tokens(path, prompts)
                    like = SERVED if session.engine.realisation(path) == "compressed" else DENSE
                    outcome = like if agrees else DIFFERS
                except MoebenchError as error:
                    outcome = str(error).splitlines()[0]
                found.append(Trial(family, kind, outcome))
                progress(found[-1])
    return found


def table(found: Sequence[Trial]) -> str:
    """Return the outcomes as a markdown table, reasons as numbered notes below it."""
    families = list(dict.fromkeys(trial.family for trial in found))
    by_place = {(trial.family, trial.kind): trial.outcome for trial in found}
    notes: list[str] = []
    lines = [f"| what the checkpoint holds | {' | '.join(families)} |", f"|---|{'---|' * len(families)}"]
    for kind, meaning in KINDS.items():
        cells = []
        for family in families:
            outcome = by_place[family, kind]
            if outcome not in (SERVED, DENSE, DIFFERS):
                notes += [outcome] if outcome not in notes else []
                outcome = f"no [{notes.index(outcome) + 1}]"
            cells.append(outcome)
        lines.append(f"| {meaning} | {' | '.join(cells)} |")
    return "\n".join([*lines, *(f"\n[{number}] {note}" for number, note in enumerate(notes, 1))])


def store(found: Sequence[Trial], runner: Engine, path: Path = TABLE) -> None:
    """Put the outcomes into a JSON file, beside others of the same engine, version and target.

    Args:
        found: the outcomes.
        runner: engine that was tried.
        path: the file.
    """
    engine = installed_engine(runner)
    assert engine is not None  # it was just tried
    own = {"engine": engine[0], "version": engine[1], "target": runner.name}
    others = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
    kept = [one for one in others if any(one[key] != value for key, value in own.items())]
    cells: dict[str, dict[str, str]] = next((one["cells"] for one in others if one not in kept), {})
    for trial in found:
        cells.setdefault(trial.family, {})[trial.kind] = trial.outcome
    write_atomically(path, json.dumps([*kept, {**own, "cells": cells}], indent=1) + "\n", remedy="free space")


def main(out: Path) -> None:
    """Try everything, put the table between the markers in ``out``, and store the outcomes."""
    from bench.records.environment import environment

    with (
        tempfile.TemporaryDirectory() as logs,
        TimingSession(TimingProtocol(dtype="float32"), logs=Path(logs)) as session,
    ):
        found = trials(session, lambda one: print(f"{one.family:12} {one.kind:16} {one.outcome}", flush=True))
    store(found, session.engine)
    engine = installed_engine(session.engine)
    name = " ".join(engine) if engine else "vLLM"
    text = out.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    head = (
        f"Tried with {name} on {environment().device}, float32, {TOKENS} greedy tokens of three prompts against transformers. "
        "*dense*: they agree, but values or zeros stand where few bits or nothing are stored, so no speed is claimed."
    )
    out.write_text(f"{before}{BEGIN}\n\n{head}\n\n{table(found)}\n\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
