"""Kinds of models with routed experts that no family file can state, and why."""

from __future__ import annotations

from collections.abc import Mapping

_NO_CLASS = "transformers has no class for models of this type, so there is nothing to compare them with"

NO_CLASS = ("bailing_moe", "bailing_moe_v2", "deepseek_ref", "minicpm", "minimax_m3")
"""Values of ``model_type`` of published models that only code beside the weights runs."""

UNSUPPORTED: Mapping[str, str] = {
    "gemma4": "they run beside a dense network in the same layer, each behind norms of its own, and the router reads the "
    "residual stream as it is, while a sub-layer has one input here",
    "nemotron_h": "they are two matrices each, without a gate, and a layer has experts, attention or Mamba alone",
    "deepseek_v4": "the first layers choose them by a hash of the token, not by a router, and the residual stream is several "
    "streams (hyper-connections)",
    "step3p7": "transformers runs its language model within the larger one alone, and bounds what they make layer by layer",
    **dict.fromkeys(NO_CLASS, _NO_CLASS),
}
"""Values of ``model_type``, and the reason for which its experts cannot be handled."""
