"""The probe of a real model: candidates are run, one decoder layer in memory, and no question is computed twice.

Shape letters: S tokens of the probe, E routed experts, C candidates, D hidden size.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from bench.calibration.code_digest import PROBING, code_digest
from bench.calibration.inputs import WHOLE_TEXT, check_inputs, resolved_dtype, settings_of
from bench.probing.answers import Answer, Answers
from bench.probing.decoder_layers import Layers
from bench.probing.masked_model import MaskedModel
from bench.probing.questions import Prefix, Questions, canonical, prefix_of
from bench.probing.states import States
from bench.probing.windows import batches, chosen
from methods.framework.errors import ConfigError, RefusedError, StatsError
from methods.framework.layer_plan import LayerPlan
from methods.framework.probe import Decided, LayerView
from methods.framework.stats import Array

if TYPE_CHECKING:
    from bench.checkpoint.checkpoint import Checkpoint
    from bench.text.corpus import Corpus


class ModelProbe:
    """Answers ``methods.framework.probe.Probe`` by running a checkpoint on a part of a corpus.

    Tokens are those of whole windows, sorted by length (windows of one length keep the corpus's order). *Routed output* is
    the sum of the routed experts' weighted outputs: shared experts are never removed, and are left out of ``layer_view`` and
    ``layer_error``; ``block_error`` runs full decoder layers, shared experts included.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        corpus: Corpus,
        *,
        tokens: int = 4096,
        device: str = "cpu",
        dtype: str = "auto",
        hidden_bytes: int = 2**30,
        scratch: Path | None = None,
        cache: Path | None = None,
        distill: float = 0.01,
        mask_tokens: int = 16384,
        mask_batch_tokens: int = 2048,
        batch_tokens: int = 1024,
        expert_rows: int = 4096,
    ) -> None:
        """Choose the tokens; nothing is run before the first question.

        Args:
            checkpoint: an open checkpoint.
            corpus: windows of token ids.
            tokens: bound on the tokens that are run; as many whole, evenly spaced windows are taken as fit.
            device: torch device of the computation.
            dtype: as for ``bench.calibration.calibrate.calibrate``.
            hidden_bytes: bound in bytes, each time, on the original hidden states in memory (above it they lie in a file
                under ``scratch``), on other states that are kept, and on experts' outputs whose Gram is taken.
            scratch: folder for temporary files; None takes the system's.
            cache: folder of earlier answers, read and written.
            distill: factor of the distance of final states in the loss of ``mask_gradient``.
            mask_tokens: bound on the tokens of all batches of ``mask_gradient``, chosen like ``tokens`` but apart from them;
                the default is what DiEP takes, 128 windows in batches of 16, if windows have 128 tokens.
            mask_batch_tokens: tokens of one batch (at least one window).
            batch_tokens: tokens of one attention call (at least one sequence).
            expert_rows: rows of one matrix product in the feed-forward sub-layers.

        Raises:
            ConfigError: no window fits into ``tokens``.
            StatsError: the corpus does not fit the model.
            RefusedError: only some tokens of the corpus count.
        """
        check_inputs(checkpoint.inventory, corpus, ())
        if corpus.marks is not None:
            raise RefusedError(f"a method that runs the model {WHOLE_TEXT}")
        self._checkpoint, self._inventory = checkpoint, checkpoint.inventory
        self.corpus = chosen(corpus, tokens)
        """The part of the corpus that is run."""
        self._device = torch.device(device)
        self._dtype = getattr(torch, resolved_dtype(dtype, device, checkpoint.inventory))
        self._bound, self._scratch, self._distill = hidden_bytes, scratch, distill
        self._whole, self._mask_tokens, self._mask_batch_tokens = corpus, mask_tokens, mask_batch_tokens
        self._batch_tokens, self._expert_rows = batch_tokens, expert_rows
        self._questions = Questions(checkpoint.inventory)
        self._answers = Answers(self._key(), cache)

    def layer_view(self, layer: int, decided: Decided) -> LayerView:
        """Return logits and Gram of all experts of ``layer``, with the original model's routed output as the last index.

        The arrays are the cached ones: do not change them.
        """
        self._questions.moe_layer(layer)
        plans = self._decided(layer, decided)

        @torch.inference_mode()
        def run() -> Answer:
            input_TD = self._states.attended(layer, plans).input_TD
            gram = self._layers.gram(layer, input_TD, self._states.target(layer), self._bound)
            return {"gram": gram.numpy(), "logits": self._layers.logits(layer, input_TD).double().cpu().numpy()}

        answer = self._ask("layer_view", layer, plans, [], run)
        return LayerView(answer["logits"], answer["gram"])

    def layer_error(self, layer: int, candidates: Sequence[LayerPlan], decided: Decided) -> Array:
        """Return ||y - y_c||_F of the routed outputs, each candidate run with its own routing (not by the Gram).

        Args:
            layer: index of a decoder layer with experts.
            candidates: C plans of that layer.
            decided: plans of other layers, by index; those that are absent are uncompressed.

        Returns:
            Errors of shape (C,); y is the output of the uncompressed model.
        """
        self._questions.moe_layer(layer)
        plans = self._decided(layer, decided)
        options = [self._candidate(layer, plan) for plan in candidates]

        @torch.inference_mode()
        def run() -> Answer:
            input_TD, target_TD = self._states.attended(layer, plans).input_TD, self._states.target(layer)
            found = {plan: _distance(self._layers.routed(layer, input_TD, plan), target_TD) for plan in set(options)}
            return {"error": np.array([found[plan] for plan in options])}

        return self._ask("layer_error", layer, plans, [[canonical(plan) for plan in options]], run)["error"].copy()

    def noise_error(self, layer: int, candidates: Sequence[LayerPlan]) -> Array:
        """Return ||y - y_c||_F of the routed outputs for inputs drawn from a standard normal distribution, shape (C,).

        Args:
            layer: index of a decoder layer with experts.
            candidates: C plans of that layer.
        """
        self._questions.moe_layer(layer)
        options = [self._candidate(layer, plan) for plan in candidates]

        @torch.inference_mode()
        def run() -> Answer:
            drawn = torch.Generator().manual_seed(layer)
            shape = (self._layers.tokens, self._inventory.hidden)
            input_TD = torch.randn(shape, generator=drawn).to(self._device, self._dtype)
            target_TD = self._layers.routed(layer, input_TD, LayerPlan())
            found = {plan: _distance(self._layers.routed(layer, input_TD, plan), target_TD) for plan in set(options)}
            return {"error": np.array([found[plan] for plan in options])}

        return self._ask("noise_error", layer, {}, [[canonical(plan) for plan in options]], run)["error"].copy()

    def block_error(self, layers: Sequence[int], candidates: Sequence[Sequence[LayerPlan]], decided: Decided) -> Array:
        """Return the errors at the output of a block, as a tree of prefixes: K + ... + K^T layer runs for T layers of K.

        Attention runs once for each prefix, and its output serves all candidates of the layer.

        Args:
            layers: consecutive decoder layers.
            candidates: plans of each of ``layers``.
            decided: plans of earlier layers, by index; empty feeds the block with the original states.

        Returns:
            Errors of shape (C_1, ..., C_T), an axis for the candidates of each layer.

        *Source*: MoE-I², block-wise KT-reception field.
        """
        options = [
            [self._candidate(layer, plan) for plan in plans]
            for layer, plans in zip(layers, self._questions.block(layers, candidates), strict=True)
        ]
        plans = self._decided(layers[0], decided)

        @torch.inference_mode()
        def run() -> Answer:
            distinct = [list(dict.fromkeys(column)) for column in options]
            goal_TD = self._states.entering(layers[-1] + 1, {})
            start_TD = self._states.entering(layers[0], plans)
            found = dict(zip(product(*distinct), self._paths(layers, distinct, start_TD, goal_TD), strict=True))
            errors = np.array([found[path] for path in product(*options)])
            return {"error": errors.reshape([len(column) for column in options])}

        written = [[canonical(plan) for plan in column] for column in options]
        return self._ask("block_error", layers[0], plans, written, run)["error"].copy()

    def _paths(
        self, layers: Sequence[int], options: Sequence[Sequence[LayerPlan]], hidden_TD: Tensor, goal_TD: Tensor
    ) -> Iterator[float]:
        """Yield the error of every path through ``layers`` from ``hidden_TD``, in the order of ``itertools.product``."""
        if not layers:
            yield _distance(hidden_TD, goal_TD)
            return
        layer = layers[0]
        attended = None
        for plan in options[0]:
            output_TD = hidden_TD
            if plan.drop != "block":
                attended = attended or self._layers.attend(layer, hidden_TD)
                output_TD = self._layers.output(layer, attended, plan)
            yield from self._paths(layers[1:], options[1:], output_TD, goal_TD)

    def mask_gradient(self, masks: Mapping[int, Array], step: int) -> tuple[float, dict[int, Array]]:
        """Return loss and gradient on batch ``step`` (counted around); layers without a mask are as they are.

        The whole model is resident for this question. The distance of final states is the Frobenius norm over all tokens of
        the batch, of the states after the last norm.

        *Source*: DiEP, loss of the mask search.
        """
        normal = self._questions.masks(masks)
        if step < 0:
            raise ConfigError(f"steps are counted from 0, found {step}")

        def run() -> Answer:
            loss, gradient = self._masked_model.gradient(normal, step, self._distill)
            if not np.isfinite(loss) or not all(np.isfinite(slope).all() for slope in gradient.values()):
                raise StatsError(f"the loss at step {step} is {loss}, or its gradient is not finite; use dtype float32")
            return {"loss": np.array(loss), **{str(layer): slope for layer, slope in gradient.items()}}

        question = {
            "ask": "mask_gradient",
            "masks": {str(layer): mask_E.tolist() for layer, mask_E in normal.items()},
            "corpus": self._mask_corpus.digest,
            "batch": [step % len(self._batches), self._mask_batch_tokens],
        }
        answer = self._answers.recall(question, run)
        return float(answer["loss"]), {layer: answer[str(layer)].copy() for layer in normal}

    @property
    def runs(self) -> int:
        """Feed-forward sub-layers of the streamed model that were run so far."""
        return self._layers.runs

    @cached_property
    def _layers(self) -> Layers:
        return Layers(
            self._checkpoint,
            self.corpus.windows,
            self._device,
            self._dtype,
            batch_tokens=self._batch_tokens,
            expert_rows=self._expert_rows,
        )

    @cached_property
    def _states(self) -> States:
        return States(self._layers, self._device, self._dtype, self._bound, self._scratch)

    @cached_property
    def _mask_corpus(self) -> Corpus:
        return chosen(self._whole, self._mask_tokens)

    @cached_property
    def _batches(self) -> list[list[list[tuple[int, ...]]]]:
        return batches(self._mask_corpus, self._mask_batch_tokens)

    @cached_property
    def _masked_model(self) -> MaskedModel:
        return MaskedModel(self._checkpoint, self._batches, self._device, self._dtype)

    def _decided(self, before: int, decided: Decided) -> dict[int, LayerPlan]:
        return {layer: _runnable(layer, plan) for layer, plan in self._questions.decided(before, decided).items()}

    def _candidate(self, layer: int, plan: LayerPlan) -> LayerPlan:
        return _runnable(layer, self._questions.plan(layer, plan))

    def _ask(self, verb: str, layer: int, plans: Mapping[int, LayerPlan], candidates: Any, run: Any) -> Answer:
        prefix: Prefix = prefix_of(plans, layer)
        question = {"ask": verb, "layer": layer, "decided": [list(part) for part in prefix], "candidates": candidates}
        return self._answers.recall(question, run)

    def _key(self) -> dict[str, Any]:
        """Return everything that can change an answer, as JSON values."""
        dtype = str(self._dtype).removeprefix("torch.")
        settings = settings_of(self._checkpoint, self.corpus, None, str(self._device), dtype)
        return {**settings, "distill": self._distill, "code": code_digest(PROBING)}


def _runnable(layer: int, plan: LayerPlan) -> LayerPlan:
    """Return ``plan``, or refuse it where statistics are missing to run it."""
    if plan.constants:
        raise RefusedError(
            f"layer {layer}: the probe cannot run constants in place of experts, since their values are statistics"
        )
    return plan


def _distance(a_TD: Tensor, b_TD: Tensor) -> float:
    """Return the Frobenius norm of the difference, accumulated in float64."""
    return float(torch.linalg.vector_norm(a_TD - b_TD, dtype=torch.float64))
