"""Losses of a model in memory: likelihood of windows, divergence from the base.

Letters: N windows, S tokens in a window, T tokens, D hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

_LOGITS = 1 << 24
"""Logits computed at once; bounds memory to 64 MiB in float32, whatever the vocabulary."""


def nll(model: PreTrainedModel, windows_NS: Tensor, batch_size: int) -> float:
    """Return the mean negative log-likelihood of tokens 2..S of each window, in nats.

    Args:
        model: on its device.
        windows_NS: token ids.
        batch_size: windows computed at once.
    """
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

    Args:
        model: on its device.
        windows_NS: token ids.
        base_NSD: last hidden states of the base (``final_states``).
        batch_size: windows computed at once.
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


def final_states(model: PreTrainedModel, windows_NS: Tensor, batch_size: int) -> Tensor:
    """Return the last hidden states of every position, in main memory, shape (N, S, D).

    Args:
        model: on its device.
        windows_NS: token ids.
        batch_size: windows computed at once.
    """
    batches = torch.split(windows_NS, batch_size)
    return torch.cat([_final_hidden(model, ids_BS.to(model.device)).cpu() for ids_BS in batches])


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
