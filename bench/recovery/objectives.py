"""What a recovery minimises.

Letters: B windows, T tokens of a window, V vocabulary, P pairs of a token and an expert that its router chose, D hidden
size, E experts of the student's layer, K experts per token.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, kl_div, log_softmax

from bench.recovery.pairs import LayerPair
from methods.framework.errors import RefusedError

Objective = Callable[[Tensor], Tensor]
"""Takes token ids of shape (B, T) and returns the loss, from which gradients flow."""


def next_token_loss(logits_BTV: Tensor, ids_BT: Tensor) -> Tensor:
    """Return the mean cross-entropy of each token given those before it."""
    return cross_entropy(logits_BTV[:, :-1].flatten(0, 1).float(), ids_BT[:, 1:].flatten())


class LanguageModelling:
    """The mean cross-entropy of the text: the objective of ``lora`` and ``full``."""

    def __init__(self, student: nn.Module) -> None:
        """Train ``student``."""
        self._student = student

    def __call__(self, ids_BT: Tensor) -> Tensor:
        """Return the loss on these windows."""
        return next_token_loss(_logits(self._student, ids_BT), ids_BT)


class RouterDistillation:
    """t^2 KL(softmax(teacher / t) || softmax(student / t)) of the output logits, averaged over tokens; t is the temperature.

    *Source*: Router KD, arXiv 2603.02217.

    *Differs*: the factor t^2, which keeps the size of gradients, is the one of Hinton et al. 2015; it is 1 by default.
    """

    def __init__(self, student: nn.Module, teacher: nn.Module, temperature: float) -> None:
        """Train ``student`` to say what ``teacher`` says.

        Args:
            student: the model that learns.
            teacher: the model before compression.
            temperature: that the logits of both are divided by.
        """
        self._student, self._teacher, self._temperature = student, teacher, temperature

    def __call__(self, ids_BT: Tensor) -> Tensor:
        """Return the loss on these windows."""
        with torch.no_grad():
            wanted_BTV = log_softmax(_logits(self._teacher, ids_BT).float() / self._temperature, dim=-1)
        found_BTV = log_softmax(_logits(self._student, ids_BT).float() / self._temperature, dim=-1)
        total = kl_div(found_BTV, wanted_BTV, reduction="sum", log_target=True)
        return total * self._temperature**2 / ids_BT.numel()


class ExpertDistillation:
    """CE + lambda sum_layers sum_experts MSE(E_t(x), E_s(x)), over the tokens x that the student routes to each expert.

    E_t is the teacher's expert from which the student's expert E_s came; of a merged one, the member that it replaces.
    Lambda is the ratio of the two sums where training starts, so that both weigh the same then.

    *Source*: expert-wise distillation of MoE-Pruner, arXiv 2410.12013.

    *Differs*: both experts get the same x, the student's hidden state, and the error moves the expert alone, not what is
    before it; the paper does not say whose states it takes. Lambda is measured on the first batch and then stays. A
    constant vector in place of an expert has no error. An expert without a token adds 0. Where every expert still is the
    teacher's, as after a mere selection, the ratio is undefined, and ``balance`` must be given.
    """

    def __init__(self, student: nn.Module, layers: Sequence[LayerPair], balance: float | None) -> None:
        """Train ``student``, whose experts are paired with the teacher's in ``layers``.

        Args:
            student: the model that learns.
            layers: its layers beside the teacher's.
            balance: lambda; None measures it on the first batch.
        """
        self._student, self._layers = student, layers
        self.balance = balance

    def __call__(self, ids_BT: Tensor) -> Tensor:
        """Return the loss on these windows.

        Raises:
            RefusedError: no balance is given, and there is no error to measure it from.
        """
        with _routed(self._layers) as inputs:
            language = next_token_loss(_logits(self._student, ids_BT), ids_BT)
        errors = torch.stack([layer.error(*seen) for layer, seen in zip(self._layers, inputs, strict=True)]).sum()
        if self.balance is None:
            if errors.item() == 0.0:
                raise RefusedError(
                    "expert_kd weighs the text by the errors of the experts where training starts, and there is none: each "
                    "expert still gives what the teacher's gives. Set balance, or choose full"
                )
            self.balance = float(language.detach() / errors.detach())
        return language + self.balance * errors


@contextmanager
def _routed(layers: Sequence[LayerPair]) -> Iterator[list[tuple[Tensor, Tensor]]]:
    """Yield a list that holds the input and the chosen router rows of each layer's experts once the student has run."""
    seen: dict[int, tuple[Tensor, Tensor]] = {}
    inputs: list[tuple[Tensor, Tensor]] = []

    def note(place: int) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def hook(module: nn.Module, arguments: tuple[Any, ...]) -> None:
            seen[place] = layers[place].taken(arguments)

        return hook

    handles = [layer.student.register_forward_pre_hook(note(place)) for place, layer in enumerate(layers)]
    try:
        yield inputs
    finally:
        for handle in handles:
            handle.remove()
    inputs += [seen[place] for place in range(len(layers))]


def _logits(model: nn.Module, ids_BT: Tensor) -> Tensor:
    logits: Tensor = model(input_ids=ids_BT, use_cache=False).logits
    return logits
