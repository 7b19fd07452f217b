"""A probe without a model: it answers from statistics kept token by token, cheaply and by the same rules.

Shape letters: S sampled tokens, E routed experts, R router rows, K experts per token, C candidates, X = E + 1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import reduce

import numpy as np
import torch
from numpy.typing import NDArray

from bench.probing.questions import Questions
from methods.framework.errors import RefusedError
from methods.framework.inventory import Inventory
from methods.framework.layer_plan import LayerPlan
from methods.framework.probe import Decided, LayerView
from methods.framework.stats import Array, Stats
from methods.kernels.routing import route

BATCHES = 4
"""Batches of tokens among which ``mask_gradient`` takes turns."""


class SyntheticProbe:
    """Stands for the model where laws are tried.

    Answers follow from ``token_logits`` and ``token_gram`` by expert, never by index, so relabelling the experts of the
    statistics relabels the answers. Routing is the family's, with a correction bias of 0.

    *Differs* from a model: nothing that is ``decided`` in earlier layers reaches later ones; a merged expert's output is the
    weighted sum of its members' outputs; constants are 0; errors of the layers of a block add up in squares; inputs of noise
    are its tokens again.
    """

    def __init__(self, inventory: Inventory, stats: Stats) -> None:
        """Answer for the model of ``inventory`` from its ``stats``; those that lack are missed when first asked for."""
        self._inventory, self._stats = inventory, stats
        self._questions = Questions(inventory)
        self._layers: dict[int, tuple[Array, Array, Array]] = {}

    def layer_view(self, layer: int, decided: Decided) -> LayerView:
        """Return the layer's logits and Gram with the target, a linear combination of the experts' outputs."""
        self._questions.moe_layer(layer)
        self._questions.decided(layer, decided)
        logits_SE, gram_SEE, gates_SE = self._layer(layer)
        cross_SE = np.einsum("sij,sj->si", gram_SEE, gates_SE)
        gram_SXX = np.pad(gram_SEE, ((0, 0), (0, 1), (0, 1)))
        gram_SXX[:, :-1, -1] = gram_SXX[:, -1, :-1] = cross_SE
        gram_SXX[:, -1, -1] = np.einsum("si,si->s", cross_SE, gates_SE)
        return LayerView(logits_SE, gram_SXX)

    def layer_error(self, layer: int, candidates: Sequence[LayerPlan], decided: Decided) -> Array:
        """Return the root of each candidate's Gram loss over the tokens, shape (C,).

        Args:
            layer: index of a decoder layer with experts.
            candidates: C plans of that layer.
            decided: plans of other layers, which are checked and change nothing here.
        """
        self._questions.moe_layer(layer)
        self._questions.decided(layer, decided)
        return np.sqrt([self._loss(layer, self._questions.plan(layer, plan)) for plan in candidates])

    def noise_error(self, layer: int, candidates: Sequence[LayerPlan]) -> Array:
        """Return ``layer_error``: what is kept token by token tells nothing of other inputs.

        Args:
            layer: index of a decoder layer with experts.
            candidates: C plans of that layer.
        """
        return self.layer_error(layer, candidates, {})

    def block_error(self, layers: Sequence[int], candidates: Sequence[Sequence[LayerPlan]], decided: Decided) -> Array:
        """Return the root of the Gram losses summed over the layers of each path.

        Args:
            layers: consecutive decoder layers.
            candidates: plans of each of ``layers``.
            decided: plans of earlier layers, which are checked and change nothing here.

        Returns:
            Errors of shape (C_1, ..., C_n), an axis for the candidates of each layer.
        """
        options = self._questions.block(layers, candidates)
        self._questions.decided(layers[0], decided)
        losses = [
            np.array([self._loss(layer, plan) for plan in plans]) for layer, plans in zip(layers, options, strict=True)
        ]
        return np.asarray(np.sqrt(reduce(np.add.outer, losses)))

    def mask_gradient(self, masks: Mapping[int, Array], step: int) -> tuple[float, dict[int, Array]]:
        """Return the sum over layers of (m - 1)^T A (m - 1) / 2 - b^T m, and its gradient A (m - 1) - b.

        A is the mean over the tokens of a batch of g_i g_j f_i.f_j, the loss of the routed output when outputs are scaled;
        b, the mean of g_j |f_j|, makes every expert worth something.
        """
        loss, gradient = 0.0, {}
        for layer, mask_E in self._questions.masks(masks).items():
            _, gram_SEE, gates_SE = self._layer(layer)
            batch = slice(step % BATCHES, None, BATCHES)
            gated_SEE = gram_SEE[batch] * gates_SE[batch, :, None] * gates_SE[batch, None, :]
            curvature_EE = gated_SEE.mean(axis=0)
            worth_E = np.sqrt(np.diagonal(gated_SEE, axis1=1, axis2=2)).mean(axis=0)
            pull_E = curvature_EE @ (mask_E - 1.0)
            loss += float((mask_E - 1.0) @ pull_E / 2.0 - worth_E @ mask_E)
            gradient[layer] = pull_E - worth_E
        return loss, gradient

    def _layer(self, layer: int) -> tuple[Array, Array, Array]:
        """Return logits (S, E), Gram (S, E, E) and the weights of the original routing (S, E) of ``layer``.

        Raises:
            StatsError: the statistics were not measured.
            RefusedError: they describe experts that were merged, or another model.
        """
        if layer not in self._layers:
            gram_SEE = np.asarray(self._stats.layer("token_gram", layer), dtype=np.float64)
            logits_SE = np.asarray(self._stats.layer("token_logits", layer), dtype=np.float64)
            inventory = self._inventory.layers[layer]
            if gram_SEE.shape[1] != inventory.experts or inventory.expert_map is not None:
                raise RefusedError(
                    f"layer {layer} has {inventory.experts} experts behind {inventory.rows} router rows, the statistics "
                    f"describe {gram_SEE.shape[1]}: they are of another model; measure them anew on this one"
                )
            gates_SE = self._gates(logits_SE, inventory.top_k)
            self._layers[layer] = logits_SE, gram_SEE, gates_SE
        return self._layers[layer]

    def _gates(self, logits_SR: Array, top_k: int) -> Array:
        """Return the weight of every row's output, 0 where the router does not choose it."""
        zeros_R = torch.zeros(logits_SR.shape[1], dtype=torch.float64)
        routing = route(torch.from_numpy(np.ascontiguousarray(logits_SR)), self._inventory.router, top_k, zeros_R)
        gates_SR = torch.zeros(logits_SR.shape, dtype=torch.float64)
        return gates_SR.scatter_(1, routing.indices_TK, routing.weights_TK.double()).numpy()

    def _loss(self, layer: int, plan: LayerPlan) -> float:
        """Return the squared error of the routed output when the layer becomes as ``plan`` says."""
        if layer not in self._inventory.moe_layers:
            return 0.0
        logits_SE, gram_SEE, gates_SE = self._layer(layer)
        change_SE = -gates_SE
        if plan.drop == "none":
            rows, mix_RE = self._mixture(layer, plan)
            logits_SR = logits_SE[:, rows]
            if plan.router == "mean":
                logits_SR = logits_SE @ mix_RE.T / mix_RE.sum(axis=1)
            top_k = plan.top_k or min(self._inventory.layers[layer].top_k, len(rows))
            change_SE = self._gates(logits_SR, top_k) @ mix_RE - gates_SE
        return max(0.0, float(np.einsum("si,sij,sj->", change_SE, gram_SEE, change_SE, optimize=True)))

    def _mixture(self, layer: int, plan: LayerPlan) -> tuple[list[int], NDArray[np.float64]]:
        """Return the router rows that stay and, for each, the factors of the original outputs that it leads to (R, E)."""
        count = self._inventory.layers[layer].experts
        experts = list(range(count)) if plan.experts is None else list(plan.experts)
        place_XE = np.zeros((len(experts) + len(plan.constants), count))
        place_XE[range(len(experts)), experts] = 1.0
        for merge in plan.merges:
            row_E = place_XE[experts.index(merge.into)]
            row_E[:] = 0.0
            row_E[list(merge.members)] = merge.weights
        rows = list(range(count)) if plan.rows is None else list(plan.rows)
        leads_to = range(len(rows)) if plan.expert_map is None else plan.expert_map
        return rows, place_XE[list(leads_to)]
