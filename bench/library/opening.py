"""``open_checkpoint``: a checkpoint by folder, hub id or the name of a pocket model."""

from __future__ import annotations

from pathlib import Path

from bench.checkpoint.checkpoint import Checkpoint


def open_checkpoint(
    source: str | Path | Checkpoint, revision: str | None = None, trust_remote_code: bool = False
) -> Checkpoint:
    """Open a checkpoint; its config and the files' headers are read, no weight. One that is open is returned as it is.

    Args:
        source: folder, hub id such as ``allenai/OLMoE-1B-7B-0924``, or name of a pocket model.
        revision: hub branch, tag or commit.
        trust_remote_code: whether its tokenizer may run Python code that lies beside the weights.

    Raises:
        CheckpointError: missing, truncated, inconsistent, quantised or not obtainable; it names the culprit.
        NotMoEError: not a MoE model, or of an unknown family.
    """
    return source if isinstance(source, Checkpoint) else Checkpoint.open(source, revision, trust_remote_code)
