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
from bench.serving.kinds import KINDS, compression
from bench.serving.servable import served_realisation
from bench.serving.target import DENSE, DIFFERS, SERVED, TABLE, Target, installed_engine
from bench.store.atomic import write_atomically
from bench.timing.offline import TimingSession
from bench.timing.protocol import TimingProtocol
from methods.framework.errors import MoebenchError

TOKENS = 24
BEGIN, END = "<!-- table: begin -->", "<!-- table: end -->"


def write(checkpoint: Checkpoint, kind: str, out: Path) -> Path:
    """Write the checkpoint of ``kind`` and return its folder."""
    from bench.applying.apply import apply
    from bench.calibration.calibrate import calibrate
    from bench.models.tiny import tiny_tokens
    from bench.text.corpus import Corpus

    plan = compression(checkpoint, kind)
    corpus = Corpus.of(tiny_tokens().tolist(), "random ids")
    moments = calibrate(checkpoint, corpus, plan.moments) if plan.moments else None
    return apply(checkpoint, plan, out, moments=moments)


def greedy_tokens(path: Path, prompts: Sequence[Sequence[int]], tokens: int = TOKENS) -> list[list[int]]:
    """Return ``tokens`` greedy tokens after each prompt as transformers gives them, without batch and without cache."""
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


@dataclass(frozen=True, slots=True)
class Trial:
    """What happened to one kind of compression in one family: ``served``, ``dense``, ``differs`` or the reason of a failure."""

    family: str
    kind: str
    outcome: str


def trials(session: TimingSession, cpu: bool, progress: Callable[[Trial], None] = lambda trial: None) -> list[Trial]:
    """Try every kind in every family, in float32, and return the outcomes; ``cpu`` says what vLLM runs on."""
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
                    like = SERVED if served_realisation(path, cpu) == "compressed" else DENSE
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


def store(found: Sequence[Trial], target: Target, path: Path = TABLE) -> None:
    """Put the outcomes into the JSON file at ``path`` in place of those of the same engine, version and target."""
    engine = installed_engine(target)
    assert engine is not None  # it was just tried
    cells: dict[str, dict[str, str]] = {}
    for trial in found:
        cells.setdefault(trial.family, {})[trial.kind] = trial.outcome
    own = {"engine": engine[0], "version": engine[1], "target": target}
    others = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
    kept = [one for one in others if any(one[key] != value for key, value in own.items())]
    write_atomically(path, json.dumps([*kept, {**own, "cells": cells}], indent=1) + "\n", remedy="free space")


def main(out: Path) -> None:
    """Try everything, put the table between the markers in ``out``, and store the outcomes."""
    import torch

    from bench.records.environment import environment

    cpu = not torch.cuda.is_available()
    with (
        tempfile.TemporaryDirectory() as logs,
        TimingSession(TimingProtocol(dtype="float32"), logs=Path(logs)) as session,
    ):
        found = trials(session, cpu, lambda one: print(f"{one.family:12} {one.kind:16} {one.outcome}", flush=True))
    target: Target = "vllm-cpu" if cpu else "vllm-gpu"
    store(found, target)
    engine = installed_engine(target)
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
