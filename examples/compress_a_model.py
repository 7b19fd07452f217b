"""Compress a model of the hub, a local folder or a pocket model, and load what was written.

    python examples/compress_a_model.py
    python examples/compress_a_model.py allenai/OLMoE-1B-7B-0924 --method reap --keep 0.75 --out olmoe-reap

With a real model give a corpus of real text, as in ``--corpus datasets:allenai/c4:en:train:text --length 2048``.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from bench import compress, load_model, open_checkpoint


def main() -> None:
    """Compress, and say what that cost."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("model", nargs="?", default="pocket-mixtral", help="hub id, folder, or name of a pocket model")
    parser.add_argument("--method", default="reap", help="see `moebench methods`")
    parser.add_argument("--keep", type=float, default=0.5, help="share of the experts that remains")
    parser.add_argument("--out", type=Path, default=Path("compressed"), help="folder to write to")
    parser.add_argument("--corpus", default="pocket", help="text file, datasets:NAME, or pocket[:domain]")
    parser.add_argument("--sequences", type=int, default=32, help="windows of calibration text")
    parser.add_argument("--length", type=int, default=128, help="tokens of a window")
    parser.add_argument("--store", type=Path, default=Path("runs"), help="folder of cached statistics")
    given = parser.parse_args()

    source = open_checkpoint(given.model)
    calibration = {"corpus": given.corpus, "sequences": given.sequences, "length": given.length}
    result = compress(source, given.method, keep=given.keep, out=given.out, calibration=calibration, store=given.store)
    before, after = result.source_cost, result.cost
    print(f"{source.name}: {before.experts} experts, {before.parameters:,} parameters, {before.bytes:,} bytes")
    print(f"{result.folder}: {after.experts} experts, {after.parameters:,} parameters, {after.bytes:,} bytes")

    model = load_model(result.folder)
    print(f"{type(model).__name__} holds {sum(weight.numel() for weight in model.parameters()):,} parameters")


if __name__ == "__main__":
    main()
