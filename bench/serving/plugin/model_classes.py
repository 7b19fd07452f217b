"""Model classes of the plug-in: each is the stock class, built with parts that know their own layer.

While the stock constructor runs, three names of its module stand for our versions: the router's linear layer, the experts'
factory and the MoE block. They read the layer number from vLLM's ``prefix`` and take their sizes from that layer. Experts in
a form of their own are built as ``experts.FormedExperts``, and their weights are taken out of the stream that the stock loader
reads. Where the device has no kernel for few bits (a CPU), these are loaded as the values that they stand for.
Everything else (attention, tensor parallelism, other weights, compilation) is stock code.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from types import ModuleType
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from bench.experts.stored_module import CompressedExperts
from bench.families.compressed_config import PREFIX
from bench.families.family import Family, family_of
from bench.families.family_file import VllmRule
from bench.serving.plugin import STOCK
from bench.serving.plugin.latent_configs import document_of
from bench.serving.plugin.loading import ExpertWeights, Named
from bench.serving.plugin.mapped_routing import MappedRouter
from bench.serving.plugin.stored_experts import FormedExperts
from methods.framework.errors import RefusedError
from methods.framework.forms import has_own_form
from methods.framework.inventory import Inventory, LayerInventory

if TYPE_CHECKING:
    from vllm.config import VllmConfig


class DroppedBlock(nn.Module):
    """What is left of a dropped MoE sub-layer: it adds nothing to the residual stream."""

    experts = None
    """Some stock models list those of every layer that their config gives experts; there are none here."""

    def forward(self, hidden: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Return zeros of the shape of ``hidden``."""
        return torch.zeros_like(hidden)


class ResidualOnly(nn.Module):
    """Stands for the norm before a dropped sub-layer: adds to the residual stream and normalises nothing."""

    def forward(self, hidden: torch.Tensor, residual: torch.Tensor | None = None) -> Any:
        """Return (anything of the right shape, the residual stream with ``hidden`` added).

        Where the layer itself adds to the stream, so that none is given, return anything of the right shape.
        """
        if residual is None:
            return hidden
        total = hidden + residual
        return total, total


def layer_of(prefix: str) -> int:
    """Return the decoder layer that a vLLM module prefix such as ``model.layers.3.mlp.experts`` belongs to."""
    found = re.search(r"\blayers\.(\d+)\b", prefix)
    assert found is not None, prefix
    return int(found.group(1))


@contextmanager
def _parts(module: ModuleType, rule: VllmRule, inventory: Inventory) -> Iterator[None]:
    """Make the names that a stock model is built from stand for parts of the right size, for the length of the block.

    Args:
        module: that defines the model.
        rule: names of the parts.
        inventory: the checkpoint.
    """
    block, inside = rule.block, module if rule.parts is None else importlib.import_module(rule.parts)
    places: dict[str, Any] = {"GateLinear": inside, "FusedMoEFactory": inside, block: module}
    stock = {name: getattr(place, name) for name, place in places.items()}
    layers = inventory.layers
    resized: dict[int, tuple[nn.Parameter, nn.Parameter]] = {}

    def gate(hidden: int, rows: int, *args: Any, **kwargs: Any) -> nn.Module:
        made: nn.Module = stock["GateLinear"](hidden, layers[layer_of(kwargs["prefix"])].rows, *args, **kwargs)
        return made

    def experts(*args: Any, **kwargs: Any) -> Any:
        index = layer_of(kwargs["prefix"])
        layer, correction = layers[index], kwargs.get("e_score_correction_bias")
        if correction is not None and len(correction) != layer.rows:
            kwargs["e_score_correction_bias"] = _of_length(correction, layer.rows)
            resized[index] = correction, kwargs["e_score_correction_bias"]
        if rule.one_group and correction is not None:
            kwargs |= {"use_grouped_topk": True, "num_expert_group": 1, "topk_group": 1}
        return _experts(stock["FusedMoEFactory"], layer, kwargs)

    stock_block: Any = stock[block]

    class Block(stock_block):  # type: ignore[misc]  # its base is known only now
        """The stock MoE block, or what is left of a dropped one."""

        def __new__(cls, *args: Any, **kwargs: Any) -> Any:
            kind = layers[layer_of(kwargs["prefix"])].mlp
            return DroppedBlock() if kind == "none" else super().__new__(cls)

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            index = layer_of(kwargs["prefix"])
            if index in resized:
                _exchange(self, *resized[index])
            if constants := layers[index].constants:
                shape = (constants, inventory.hidden)
                self.constant_experts = nn.Parameter(torch.empty(shape), requires_grad=False)

        def forward(self, hidden: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
            output: torch.Tensor = super().forward(hidden, *args, **kwargs)
            if not hasattr(self, "constant_experts"):
                return output
            logits, _ = self.gate(hidden)
            router: MappedRouter = self.experts.router
            return output + router.constant_output(hidden, logits, self.constant_experts).view_as(output)

    replaced = {"GateLinear": gate, "FusedMoEFactory": experts, block: Block}
    try:
        for name, part in replaced.items():
            setattr(places[name], name, part)
        yield
    finally:
        for name, part in stock.items():
            setattr(places[name], name, part)


def _of_length(correction: nn.Parameter, rows: int) -> nn.Parameter:
    """Return a parameter like ``correction`` for ``rows`` rows, with the loader that stock code gave it."""
    made = nn.Parameter(torch.empty(rows, dtype=correction.dtype), requires_grad=correction.requires_grad)
    for name, value in vars(correction).items():
        setattr(made, name, value)
    return made


def _exchange(block: nn.Module, old: nn.Parameter, new: nn.Parameter) -> None:
    """Put ``new`` where ``block`` or a module in it holds ``old``; families keep the bias in different places."""
    for module in block.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            if parameter is old:
                setattr(module, name, new)


def _experts(factory: Any, layer: LayerInventory, kwargs: dict[str, Any]) -> Any:
    """Build the experts of ``layer`` with vLLM's ``factory``.

    Args:
        factory: stock factory.
        layer: what the checkpoint stores of the layer.
        kwargs: what the stock block gives to the factory.
    """
    kwargs |= {"num_experts": layer.experts, "top_k": layer.top_k}
    if layer.expert_map is not None:
        kwargs["router"] = MappedRouter.of(layer, kwargs)
    if has_own_form(layer.form):
        kwargs |= {"routed_experts_cls": FormedExperts, "routed_experts_args": {"stored": layer}}
    return factory(**kwargs)


def _finish(model: nn.Module, family: Family, inventory: Inventory) -> None:
    """Take the norms of dropped sub-layers out of a model that was just built; those of other devices are not in it."""
    here = dict(model.named_modules())
    for index, layer in enumerate(inventory.layers):
        norm, _ = family.mlp_modules(index)
        if layer.mlp == "none" and norm in here:
            model.set_submodule(norm, ResidualOnly())


@contextmanager
def _uniform(config: Any) -> Iterator[None]:
    """Hide the per-layer values of ``config``, whose model-wide ones stock code reads while it builds and loads."""
    overrides = config.to_dict().get("per_layer_config")
    if not overrides:
        yield
        return
    config.per_layer_config = None
    try:
        yield
    finally:
        config.per_layer_config = {int(index): value for index, value in overrides.items()}


@contextmanager
def _values_of_few_bits(vllm_config: VllmConfig) -> Iterator[bool]:
    """Hide the quantisation of a model from stock code where the device has no kernel for it, and say whether it is hidden."""
    from vllm.platforms import current_platform

    stated = vllm_config.quant_config
    if stated is None or not current_platform.is_cpu():
        yield False
        return
    vllm_config.quant_config = None
    try:
        yield True
    finally:
        vllm_config.quant_config = stated


def _check_eager(inventory: Inventory, vllm_config: VllmConfig) -> None:
    """Refuse graphs around experts in a form of their own, which are looped over on the host.

    Raises:
        RefusedError: with the option to give.
    """
    if any(has_own_form(layer.form) for layer in inventory.layers) and not vllm_config.model_config.enforce_eager:
        raise RefusedError(
            "factored or pruned experts run without CUDA graphs and torch.compile; give --enforce-eager (moebench serve does)"
        )


@cache
def _layered(name: str) -> type[nn.Module]:
    """Return our class for the stock class ``name``."""
    rule = STOCK[name]
    module = importlib.import_module(rule.module)
    stock = getattr(module, rule.architecture or name)

    def build(self: Any, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        config = vllm_config.model_config.hf_config
        document = document_of(config)
        family = family_of(document)
        inventory = family.inventory(document)
        _check_eager(inventory, vllm_config)
        with _uniform(config), _parts(module, rule, inventory), _values_of_few_bits(vllm_config) as values:
            stock.__init__(self, vllm_config=vllm_config, prefix=prefix)
        _finish(self, family, inventory)
        self._stored = (config, inventory, values)

    def load_weights(self: Any, weights: Iterable[Named]) -> set[str]:
        config, inventory, values = self._stored
        own = {name: part for name, part in self.named_modules() if isinstance(part, CompressedExperts)}
        source = ExpertWeights(inventory, {layer_of(name): part for name, part in own.items()}, values)
        with _uniform(config):
            loaded: set[str] = stock.load_weights(self, source.rest(weights))
        return loaded | {f"{name}.{weight}" for name, part in own.items() for weight, _ in part.named_parameters()}

    members = {
        "__init__": build,
        "load_weights": load_weights,
        "__module__": __name__,
        "__doc__": f"{name}, layer by layer.",
    }
    return type(PREFIX + name, (stock,), members)


def __getattr__(name: str) -> Any:
    """Return a model class by its name; they are made on demand, since each imports its stock module."""
    if name.removeprefix(PREFIX) in STOCK and name.startswith(PREFIX):
        return _layered(name.removeprefix(PREFIX))
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
