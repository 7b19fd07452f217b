"""Experts in a form of their own inside vLLM: its routed experts with our module in place of fused weights and kernels.

vLLM's runner stays as it is around them: it routes, runs shared experts, scales, and adds up the parts of several devices.

Letters: T tokens, K experts per token, D hidden size.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from vllm.model_executor.layers.fused_moe.fused_moe_method_base import FusedMoEMethodBase
from vllm.model_executor.layers.fused_moe.routed_experts import RoutedExperts

from bench.experts.grouped import preferred
from bench.experts.stored_module import CompressedExperts, Shard
from methods.framework.errors import RefusedError
from methods.framework.inventory import LayerInventory

_ACTIVATIONS: Mapping[str, Callable[[torch.Tensor], torch.Tensor]] = {"silu": F.silu, "gelu": F.gelu}


class FormedExperts(RoutedExperts):  # type: ignore[misc]  # vLLM has no type information
    """The routed experts of a layer, whose weights are in ``formed``."""

    def __init__(self, *args: Any, stored: LayerInventory, **kwargs: Any) -> None:
        """Build the stock module around what ``stored`` says.

        Raises:
            RefusedError: experts are to be distributed over devices, or have an activation that is not known here.
        """
        self._stored = stored
        super().__init__(*args, **kwargs)

    def _get_quant_method(self, prefix: str, quant_config: Any, moe_config: Any) -> FusedMoEMethodBase:
        return FormedMethod(moe_config, self._stored, prefix)


class FormedMethod(FusedMoEMethodBase):  # type: ignore[misc]  # vLLM has no type information
    """Stands where vLLM looks for the kernel of the experts."""

    def __init__(self, moe: Any, stored: LayerInventory, prefix: str) -> None:
        """Check that the layer can be run.

        Args:
            moe: vLLM's config of the layer.
            stored: what the checkpoint holds for the layer.
            prefix: name of the layer, for messages.

        Raises:
            RefusedError: as ``FormedExperts``.
        """
        super().__init__(moe)
        if moe.moe_parallel_config.use_ep:
            raise RefusedError(
                f"{prefix} stores experts in a form of its own, which is not distributed over devices expert by expert; "
                "serve without --enable-expert-parallel: tensor parallelism splits every expert instead"
            )
        if moe.activation.value not in _ACTIVATIONS:
            raise RefusedError(
                f"{prefix} has activation {moe.activation.value!r}; factored and pruned experts are served with "
                f"{', '.join(_ACTIVATIONS)} only"
            )
        self._stored = stored

    def maybe_roundup_sizes(self, hidden_size: int, channels: int, *_: Any) -> tuple[int, int]:
        """Return both sizes as they are: no kernel asks for multiples."""
        return hidden_size, channels

    def create_weights(self, layer: FormedExperts, *args: Any, params_dtype: torch.dtype, **kwargs: Any) -> None:
        """Give ``layer`` the module that holds its share of the weights."""
        act = _ACTIVATIONS[self.moe.activation.value]
        shard = Shard(self.moe.tp_rank, self.moe.tp_size)
        layer.formed = CompressedExperts(self._stored, act, params_dtype, shard).requires_grad_(False)

    def get_fused_moe_quant_config(self, layer: FormedExperts) -> None:
        """Return None: nothing is quantised."""

    def process_weights_after_loading(self, layer: FormedExperts) -> None:
        """Finish what could not be done before the weights were there, with grouped products where they are the faster way."""
        layer.formed.finish(grouped=all(map(preferred, layer.formed.parameters())))

    def apply(
        self, layer: FormedExperts, x: torch.Tensor, topk_weights: torch.Tensor, topk_ids: torch.Tensor, **_: Any
    ) -> torch.Tensor:
        """Return the weighted sum of the experts' outputs, (T, D).

        Args:
            layer: the experts.
            x: their input, (T, D).
            topk_weights: weights of the experts of each token, (T, K).
            topk_ids: those experts, (T, K).
        """
        out_TD: torch.Tensor = layer.formed(x, topk_ids, topk_weights)
        return out_TD
