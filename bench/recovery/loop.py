"""The training loop: AdamW, a rate that rises and falls along a cosine, and a state on disk from which it goes on exactly.

Letters: B windows in a step, T tokens in a window.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bench.recovery.objectives import Objective
from bench.recovery.text import Windows
from bench.settings.recovery import RATES, RecoverySettings
from bench.store.atomic import atomic_file
from methods.framework.errors import CheckpointError, ConfigError

CLIP = 1.0
"""Largest norm of the gradient of a step; a longer one is scaled down to it."""

Progress = Callable[[int, int, float], None]
"""Called after each step with the steps done, the steps in all, and the loss of the step."""


@dataclass
class History:
    """What a training has done so far.

    Args:
        losses: of each step.
        seconds: CPU seconds of this process.
        wall: seconds by the clock.
    """

    losses: list[float] = field(default_factory=list)
    seconds: float = 0.0
    wall: float = 0.0


def rate(step: int, steps: int, settings: RecoverySettings) -> float:
    """Return the learning rate of a step, counted from 0.

    r min(1, (i + 1) / w) for the first w = warmup * steps steps, then r (1 + cos(pi (i - w) / (steps - w))) / 2.

    Args:
        step: i, from 0.
        steps: of the whole training.
        settings: highest rate r and share of the warm-up.
    """
    highest = settings.rate or RATES[settings.kind]
    warm = round(settings.warmup * steps)
    if step < warm:
        return highest * (step + 1) / warm
    return highest * (1.0 + math.cos(math.pi * (step - warm) / max(1, steps - warm))) / 2.0


def train(
    weights: Mapping[str, nn.Parameter],
    objective: Objective,
    windows: Windows,
    steps: int,
    settings: RecoverySettings,
    state: Path,
    save_every: int,
    progress: Progress | None = None,
) -> History:
    """Train ``weights`` in place for ``steps`` steps, from where ``state`` left off.

    Args:
        weights: parameters by name, the same at each start.
        objective: the loss; its attribute ``balance``, where it has one, is part of the state.
        windows: the text.
        steps: steps in all.
        settings: batch, rates and decay.
        state: file of a training in progress; an absent or damaged one begins anew.
        save_every: steps between two states.
        progress: told each step and its loss.

    Raises:
        ConfigError: the loss is no longer a number.
        CheckpointError: the state cannot be written.
    """
    optimiser = torch.optim.AdamW(weights.values(), lr=0.0, weight_decay=settings.decay, fused=True)
    history = _recall(state, weights, optimiser, objective)
    device = next(iter(weights.values())).device
    chunk = settings.at_once or settings.batch
    cpu, wall = time.process_time() - history.seconds, time.perf_counter() - history.wall
    for step in range(len(history.losses), steps):
        optimiser.param_groups[0]["lr"] = rate(step, steps, settings)
        total = 0.0
        ids_BT = windows.batch(step).to(device)
        for part_BT in ids_BT.split(chunk):
            loss = objective(part_BT) * (len(part_BT) / len(ids_BT))
            loss.backward()
            total += loss.item()
        if not math.isfinite(total):
            raise ConfigError(
                f"the loss of step {step + 1} is {total}: training at rate {settings.rate or RATES[settings.kind]:g} runs "
                "away; set a lower rate, or more warm-up"
            )
        nn.utils.clip_grad_norm_(weights.values(), CLIP)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        history.losses.append(total)
        history.seconds, history.wall = time.process_time() - cpu, time.perf_counter() - wall
        if len(history.losses) % save_every == 0 or len(history.losses) == steps:
            _save(state, weights, optimiser, objective, history)
        if progress is not None:
            progress(len(history.losses), steps, total)
    return history


def _save(
    state: Path,
    weights: Mapping[str, nn.Parameter],
    optimiser: torch.optim.Optimizer,
    objective: Any,
    history: History,
) -> None:
    """Write everything that the next step depends on in one atomic step."""
    document = {
        "weights": {name: weight.detach() for name, weight in weights.items()},
        "optimiser": optimiser.state_dict(),
        "random": torch.get_rng_state(),
        "balance": getattr(objective, "balance", None),
        "history": vars(history),
    }
    try:
        with atomic_file(state) as file:
            torch.save(document, file)
    except (OSError, RuntimeError) as error:  # torch reports a full disk as a RuntimeError
        raise CheckpointError(f"cannot write {state}: {error}; free space or choose another store") from error


def _recall(
    state: Path, weights: Mapping[str, nn.Parameter], optimiser: torch.optim.Optimizer, objective: Any
) -> History:
    """Bring everything to where ``state`` left off, and return the history up to there."""
    try:
        document = torch.load(state, map_location="cpu", weights_only=True)
    except Exception:  # absent, or damaged in one of many ways: training begins anew, which costs time alone
        return History()
    if document["weights"].keys() != weights.keys():
        return History()
    with torch.no_grad():
        for name, weight in weights.items():
            weight.copy_(document["weights"][name])
    optimiser.load_state_dict(document["optimiser"])
    torch.set_rng_state(document["random"])
    if document["balance"] is not None:
        objective.balance = document["balance"]
    return History(**document["history"])
