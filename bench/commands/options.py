"""Arguments and options that several verbs of the command line have."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bench.settings.stage_settings import TRUST


def method_names(incomplete: str) -> list[str]:
    """Return the methods whose names begin like a word, for shells that complete it; a list keeps what stands before its end."""
    from methods.registry import names

    before, comma, word = incomplete.rpartition(",")
    return [f"{before}{comma}{name}" for name in names() if name.startswith(word)]


Model = Annotated[str, typer.Argument(help="folder of a checkpoint, hub id[@revision], or the name of a pocket model")]
RevisionOption = Annotated[str | None, typer.Option("--revision", help="branch, tag or commit of the model on the hub")]
StoreOption = Annotated[Path, typer.Option(help="folder of records and cached artefacts")]
TrackOption = Annotated[str | None, typer.Option(help="W&B: offline, online or disabled")]
TrustOption = Annotated[bool, typer.Option("--trust-remote-code", help=TRUST)]
DEFAULT_STORE = Path("runs")
CORPUS_OPTIONS = ("corpus", "sequences", "length", "seed", "bos", "answers_only", "device")
_CHAT = ("apply_chat_template", "system_instruction", "fewshot_as_multiturn", "enable_thinking", "template_arguments")
_ANSWERS = ("shipped_generation", "generation", "stop", "think_end_token")
EVALUATION_OPTIONS = (
    "tasks",
    "include_path",
    "limit",
    "num_fewshot",
    "max_length",
    "batch_size",
    "dtype",
    *_CHAT,
    *_ANSWERS,
)
"""Those of an evaluation that `run` and `promote` take."""
TALK_OPTIONS = ("system_instruction", "enable_thinking", "template_arguments")
"""Those that say what conversations get beside their turns, where no evaluation has options of these names."""
"""Fields of ``CalibrationConfig`` that every verb offers which measures statistics."""
ROOM_OPTIONS = ("moments", "states", "hidden_mib")
"""Those that say how much room a measurement takes."""
