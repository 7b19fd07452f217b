"""All methods by name. A method costs one file and one line here; others register through ``moebench.methods``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from methods.framework.errors import ConfigError, UnknownNameError
from methods.framework.method import Method
from methods.framework.offers import offered, offered_names

ENTRY_POINT_GROUP = "moebench.methods"

BUILT_IN: Mapping[str, str] = {
    "random": "methods.random:Random",
    "weight_norm": "methods.weight_norm:WeightNorm",
    "criterion": "methods.criterion:Criterion",
    "frequency": "methods.criterion:Frequency",
    "soft_count": "methods.criterion:SoftCount",
    "ean": "methods.criterion:EAN",
    "reap": "methods.criterion:REAP",
    "man": "methods.criterion:MAN",
    "msan": "methods.criterion:MSAN",
    "expert_drop": "methods.expert_drop:ExpertDrop",
    "layer_drop": "methods.layer_drop:LayerDrop",
    "block_drop": "methods.block_drop:BlockDrop",
    "diep": "methods.diep:DiEP",
    "naee": "methods.naee:NAEE",
    "naee_progressive": "methods.naee:NAEEProgressive",
    "naee_greedy": "methods.naee:NAEEGreedy",
    "moe_i2": "methods.moe_i2:MoEI2",
    "lexi": "methods.lexi:LExI",
    "cka_merge": "methods.diversify:CkaMerge",
    "cka_prune": "methods.diversify:CkaPrune",
    "hc_smoe": "methods.hc_smoe:HCSMoE",
    "sub_moe": "methods.sub_moe:SubMoE",
    "stun": "methods.stun:STUN",
    "easy_ep": "methods.easy_ep:EasyEP",
    "mone": "methods.mone:MoNE",
    "m_smoe": "methods.m_smoe:MSMoE",
    "ream": "methods.ream:REAM",
    "magnitude": "methods.slimming:Magnitude",
    "wanda": "methods.slimming:Wanda",
    "moe_pruner": "methods.slimming:MoEPruner",
    "sparsegpt": "methods.slimming:SparseGPT",
    "rtn": "methods.quantisation:RTN",
    "gptq": "methods.quantisation:GPTQ",
    "awq": "methods.quantisation:AWQ",
    "svd": "methods.low_rank:SVD",
    "whitened_svd": "methods.low_rank:WhitenedSVD",
    "d2_moe": "methods.d2_moe:D2MoE",
    "mobe": "methods.mobe:MoBE",
    "camera_p": "methods.channel_pruning:CAMERA",
    "heapr": "methods.channel_pruning:HEAPr",
}


def names() -> list[str]:
    """Return the names of all methods, built in first, then those of other distributions."""
    return offered_names(BUILT_IN, ENTRY_POINT_GROUP)


def method_class(name: str) -> type[Method]:
    """Return the class of method ``name``.

    Raises:
        UnknownNameError: no such method; the closest name is given.
        ConfigError: a plug-in does not offer a ``Method`` of that name.
    """
    found = offered(name, BUILT_IN, ENTRY_POINT_GROUP)
    if found is None:
        raise UnknownNameError("method", name, names(), "`moebench methods` describes them.")
    loaded, where = found
    if not (isinstance(loaded, type) and issubclass(loaded, Method) and loaded.name == name):
        raise ConfigError(f"{where} gives {loaded!r}, which is not a methods.Method with that name")
    return loaded


def method(name: str, **knobs: Any) -> Method:
    """Return method ``name`` configured with ``knobs``."""
    return method_class(name).configured(knobs)
