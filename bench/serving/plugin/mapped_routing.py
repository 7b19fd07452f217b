"""Routers that several rows lead through to one expert, or to a constant vector.

Letters: T tokens, K experts per token, D hidden size.
"""

from __future__ import annotations

from typing import Any

import torch
from vllm.model_executor.layers.fused_moe.config import RoutingMethodType
from vllm.model_executor.layers.fused_moe.router.base_router import BaseRouter
from vllm.model_executor.layers.fused_moe.router.router_factory import create_fused_moe_router

from methods.framework.errors import RefusedError
from methods.framework.inventory import LayerInventory

_ROUTER_SETTINGS = (
    "renormalize",
    "use_grouped_topk",
    "num_expert_group",
    "topk_group",
    "scoring_func",
    "e_score_correction_bias",
    "custom_routing_function",
)


class MappedRouter(BaseRouter):  # type: ignore[misc]  # vLLM has no type information
    """The stock router over all rows, followed by the map from rows to stored experts.

    A row that leads to a constant vector gets weight 0 at some stored expert; ``constant_output`` gives what it adds.
    """

    def __init__(self, inner: BaseRouter, layer: LayerInventory, top_k: int, output_scale: float) -> None:
        """Wrap a router.

        Args:
            inner: router over all rows.
            layer: what the checkpoint holds for the layer, with a map.
            top_k: rows per token.
            output_scale: factor that vLLM applies to the experts' sum afterwards, which the constants get here.
        """
        super().__init__(top_k=top_k, global_num_experts=layer.experts)
        assert layer.expert_map is not None
        self._inner, self._output_scale = inner, output_scale
        self._constants = layer.constants
        place = torch.tensor(layer.expert_map)
        constant = place >= layer.experts
        self._expert = torch.where(constant, 0, place).to(torch.int32)
        self._alive = (~constant).to(torch.float32)
        self._vector = torch.where(constant, place - layer.experts, 0)

    @classmethod
    def of(cls, layer: LayerInventory, settings: dict[str, Any]) -> MappedRouter:
        """Return the router for ``layer``, whose stock router would be built with ``settings``.

        Raises:
            RefusedError: expert-parallel load balancing is on, which moves experts without knowing of the map.
        """
        if settings.get("enable_eplb"):
            raise RefusedError(
                "a mapped router cannot be combined with expert-parallel load balancing; switch EPLB off"
            )
        after = bool(settings.get("apply_routed_scale_to_output"))
        scale = float(settings.get("routed_scaling_factor", 1.0))
        chosen = {name: settings[name] for name in _ROUTER_SETTINGS if name in settings}
        inner = create_fused_moe_router(
            top_k=layer.top_k, global_num_experts=layer.rows, routed_scaling_factor=1.0 if after else scale, **chosen
        )
        return cls(inner, layer, layer.top_k, scale if after else 1.0)

    @property
    def routing_method_type(self) -> RoutingMethodType:
        """Tell vLLM that no kernel may do the routing by itself."""
        return RoutingMethodType.Custom

    def _on(self, device: torch.device) -> None:
        if self._expert.device != device:
            self._expert, self._alive = self._expert.to(device), self._alive.to(device)
            self._vector = self._vector.to(device)

    def _compute_routing(
        self,
        hidden_states: torch.Tensor,
        router_logits: torch.Tensor,
        indices_type: torch.dtype | None,
        *,
        input_ids: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        weights_TK, rows_TK = self._inner._compute_routing(hidden_states, router_logits, indices_type)
        self._on(rows_TK.device)
        rows = rows_TK.long()
        if self._constants:
            weights_TK = weights_TK * self._alive[rows]
        return weights_TK.contiguous(), self._expert[rows].to(rows_TK.dtype).contiguous()

    def constant_output(
        self, hidden_TD: torch.Tensor, logits_TE: torch.Tensor, vectors_CD: torch.Tensor
    ) -> torch.Tensor:
        """Return the weighted sum of the constant vectors that each token is routed to, shape (T, D).

        Args:
            hidden_TD: input of the MoE block; leading axes are flattened.
            logits_TE: router logits, one for each row.
            vectors_CD: the constant vectors.
        """
        hidden_TD = hidden_TD.view(-1, hidden_TD.shape[-1])
        weights_TK, rows_TK = self._inner._compute_routing(hidden_TD, logits_TE, None)
        self._on(rows_TK.device)
        rows = rows_TK.long()
        share_TK = (weights_TK * (1.0 - self._alive[rows]) * self._output_scale).float()
        chosen_TKD = vectors_CD.float()[self._vector[rows]]
        return torch.einsum("tk,tkd->td", share_TK, chosen_TKD).to(hidden_TD.dtype)
