"""Losses of a model in memory, window by window: likelihood, divergence from the base, overlap with it.

Letters: N windows, S tokens in a window, T tokens, D hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import numpy.typing as npt
import torch

from bench.models.decoder import decoder_of
from bench.models.output_head import OutputHead

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

Reals: TypeAlias = npt.NDArray[np.float64]

_LOGITS = 1 << 24
"""Logits computed at once; bounds memory to 64 MiB in float32, whatever the vocabulary."""


def nll(model: PreTrainedModel, windows_NS: Tensor, batch_size: int) -> Reals:
    """Return the mean negative log-likelihood of tokens 2..S of each window, in nats, (N,).

    Args:
        model: on its device.
        windows_NS: token ids.
        batch_size: windows computed at once.
    """
    found = []
    for ids_BS in torch.split(windows_NS, batch_size):
        ids_BS = ids_BS.to(model.device)
        hidden_TD = _final_hidden(model, ids_BS)[:, :-1].flatten(0, 1)
        targets_T = ids_BS[:, 1:].flatten()
        losses_T = torch.cat(
            [
                torch.nn.functional.cross_entropy(logits_TV, targets_T[rows], reduction="none").double()
                for rows, logits_TV in _logits(model, hidden_TD)
            ]
        )
        found.append(losses_T.view(len(ids_BS), -1).mean(1).cpu())
    return torch.cat(found).numpy()


def divergence(model: PreTrainedModel, windows_NS: Tensor, base_NSD: Tensor, batch_size: int) -> Reals:
    """Return the mean over the positions of each window of KL(base || model), in nats, (N,).

    The base is given by its last hidden states, which are V / D times smaller than its logits; the output head, which
    no plan changes, makes the same logits of them again.

    Args:
        model: on its device.
        windows_NS: token ids.
        base_NSD: last hidden states of the base (``final_states``).
        batch_size: windows computed at once.
    """

    def kl(p_TV: Tensor, q_TV: Tensor) -> Tensor:
        return torch.nn.functional.kl_div(q_TV, p_TV, reduction="none", log_target=True).double().sum(-1)

    return _compared(model, windows_NS, base_NSD, batch_size, kl)


def overlap(model: PreTrainedModel, windows_NS: Tensor, base_NSD: Tensor, batch_size: int) -> Reals:
    """Return the mean over the positions of each window of sum_v min(p_v, q_v), 1 where both agree, (N,).

    It is the chance that speculative decoding accepts a token of the compressed model p as one of the base q.

    Args:
        model: on its device.
        windows_NS: token ids.
        base_NSD: last hidden states of the base (``final_states``).
        batch_size: windows computed at once.

    *Source*: ESAP of arXiv 2603.06003.
    """

    def shared(p_TV: Tensor, q_TV: Tensor) -> Tensor:
        return torch.minimum(p_TV, q_TV).exp().double().sum(-1)

    return _compared(model, windows_NS, base_NSD, batch_size, shared)


def final_states(model: PreTrainedModel, windows_NS: Tensor, batch_size: int) -> Tensor:
    """Return the last hidden states of every position, in main memory, shape (N, S, D).

    Args:
        model: on its device.
        windows_NS: token ids.
        batch_size: windows computed at once.
    """
    batches = torch.split(windows_NS, batch_size)
    return torch.cat([_final_hidden(model, ids_BS.to(model.device)).cpu() for ids_BS in batches])


def _compared(
    model: PreTrainedModel,
    windows_NS: Tensor,
    base_NSD: Tensor,
    batch_size: int,
    of: Callable[[Tensor, Tensor], Tensor],
) -> Reals:
    """Return the mean of ``of(log p, log q)`` over the positions of each window, p being the base, q the model."""
    found = []
    for ids_BS, base_BSD in zip(torch.split(windows_NS, batch_size), torch.split(base_NSD, batch_size), strict=True):
        hidden_TD = _final_hidden(model, ids_BS.to(model.device)).flatten(0, 1)
        base_TD = base_BSD.to(model.device).flatten(0, 1)
        pairs = zip(_logits(model, hidden_TD), _logits(model, base_TD), strict=True)
        values_T = torch.cat([of(p_TV.log_softmax(-1), q_TV.log_softmax(-1)) for (_, q_TV), (_, p_TV) in pairs])
        found.append(values_T.view(len(ids_BS), -1).mean(1).cpu())
    return torch.cat(found).numpy()


@torch.no_grad()
def _final_hidden(model: PreTrainedModel, ids_BS: Tensor) -> Tensor:
    hidden: Tensor = decoder_of(model)(ids_BS, use_cache=False).last_hidden_state
    return hidden


@torch.no_grad()
def _logits(model: PreTrainedModel, hidden_TD: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Yield the float32 logits of consecutive rows, a bounded number at a time."""
    head = OutputHead.of(model)
    step = max(1, _LOGITS // head.vocab)
    for start in range(0, hidden_TD.shape[0], step):
        rows = slice(start, start + step)
        yield rows, head(hidden_TD[rows]).float()
