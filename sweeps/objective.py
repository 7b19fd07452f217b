"""What a trial is measured by: losses on held-out windows, divergence from the base, task scores, sizes.

Letters: N windows, S tokens in a window, T tokens, D hidden size, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import torch

from methods.framework.errors import EvaluationError
from sweeps.candidate import Candidate
from sweeps.sweep_config import DivergenceObjective, LossObjective, SizeObjective, SweepConfig, TaskObjective

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from sweeps.resident import Resident

_LOGITS = 1 << 24
"""Logits computed at once; bounds memory to 64 MiB in float32, whatever the vocabulary."""


Measure = Callable[[Candidate], float]
"""Returns one number for a candidate."""


def measures(config: SweepConfig, resident: Resident) -> dict[str, Measure]:
    """Return the measure of each objective by its label; what they need of the base is measured here, once."""
    found: dict[str, Measure] = {}
    for label, objective in zip(config.labels, config.objectives, strict=True):
        match objective:
            case LossObjective():
                found[label] = _loss(
                    resident.windows(objective.windows), config.batch_size, objective.kind == "perplexity"
                )
            case DivergenceObjective():
                slice_NS = resident.calibration[: objective.sequences]
                found[label] = _divergence(resident.model, slice_NS, config.batch_size)
            case SizeObjective():
                found[label] = _size(objective.of)
            case TaskObjective():
                found[label] = _task(objective, config, resident)
    return found


def nll(model: PreTrainedModel, windows_NS: Tensor, batch_size: int) -> float:
    """Return the mean negative log-likelihood of tokens 2..S of each window, in nats."""
    total, count = 0.0, 0
    for ids_BS in torch.split(windows_NS, batch_size):
        ids_BS = ids_BS.to(model.device)
        hidden_TD = _final_hidden(model, ids_BS)[:, :-1].flatten(0, 1)
        targets_T = ids_BS[:, 1:].flatten()
        for rows, logits_TV in _logits(model, hidden_TD):
            losses_T = torch.nn.functional.cross_entropy(logits_TV, targets_T[rows], reduction="none")
            total += losses_T.double().sum().item()
        count += targets_T.numel()
    return total / count


def divergence(model: PreTrainedModel, windows_NS: Tensor, base_NSD: Tensor, batch_size: int) -> float:
    """Return the mean over all positions of KL(base || model), in nats.

    The base is given by its last hidden states, which are V / D times smaller than its logits; the output head, which
    no plan changes, makes the same logits of them again.
    """
    total = 0.0
    for ids_BS, base_BSD in zip(torch.split(windows_NS, batch_size), torch.split(base_NSD, batch_size), strict=True):
        hidden_TD = _final_hidden(model, ids_BS.to(model.device)).flatten(0, 1)
        base_TD = base_BSD.to(model.device).flatten(0, 1)
        pairs = zip(_logits(model, hidden_TD), _logits(model, base_TD), strict=True)
        for (_, logits_TV), (_, reference_TV) in pairs:
            log_q_TV, log_p_TV = logits_TV.log_softmax(-1), reference_TV.log_softmax(-1)
            total += (
                torch.nn.functional.kl_div(log_q_TV, log_p_TV, reduction="none", log_target=True).double().sum().item()
            )
    return total / windows_NS.numel()


@torch.no_grad()
def _final_hidden(model: PreTrainedModel, ids_BS: Tensor) -> Tensor:
    hidden: Tensor = model.base_model(ids_BS, use_cache=False).last_hidden_state
    return hidden


@torch.no_grad()
def _logits(model: PreTrainedModel, hidden_TD: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Yield the float32 logits of consecutive rows, a bounded number at a time."""
    head = model.get_output_embeddings()
    step = max(1, _LOGITS // head.weight.shape[0])
    for start in range(0, hidden_TD.shape[0], step):
        rows = slice(start, start + step)
        yield rows, head(hidden_TD[rows]).float()


def _loss(windows_NS: Tensor, batch_size: int, perplexity: bool) -> Measure:
    def measure(candidate: Candidate) -> float:
        value = nll(candidate.model, windows_NS, batch_size)
        # exp of a very bad loss overflows a float; Optuna orders infinity after every finite value.
        return value if not perplexity else math.exp(value) if value < 700 else math.inf

    return measure


def _divergence(model: PreTrainedModel, windows_NS: Tensor, batch_size: int) -> Measure:
    base_NSD = torch.cat(
        [_final_hidden(model, ids.to(model.device)).cpu() for ids in torch.split(windows_NS, batch_size)]
    )
    return lambda candidate: divergence(candidate.model, windows_NS, base_NSD, batch_size)


def _size(of: str) -> Measure:
    return lambda candidate: candidate.sizes[of] / candidate.source[of]


def _task(objective: TaskObjective, config: SweepConfig, resident: Resident) -> Measure:
    def measure(candidate: Candidate) -> float:
        scores = resident.scores(objective.task, objective.limit, config, candidate)
        for score in scores:
            if (score.task, score.metric, score.filter) == (objective.task, objective.metric, objective.filter):
                return score.value
        offered = ", ".join(sorted({f"{score.metric} (filter {score.filter})" for score in scores}))
        raise EvaluationError(
            f"task {objective.task} has no metric {objective.metric!r} with filter {objective.filter!r}; it has "
            f"{offered}"
        )

    return measure
