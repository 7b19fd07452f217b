"""The config of a compressed checkpoint, and the per-layer values that a config may state.

Layers that differ are written in transformers' ``per_layer_config``: a mapping from the layer's index to the keys in
which it departs from the whole model. A count of 0 experts marks a MoE sub-layer dropped with its norm.

The count of experts in a config is that of router rows. Where several rows lead to one stored expert, or a row leads to
a constant vector, the layer states ``"expert_map"``, the place that each row leads to, and ``"constant_experts"``, how
many of the places are constants; they are the last ones. Where experts are not three whole matrices each, the layer states
``"expert_form"`` (``bench.families.form_config``); experts in few bits are stated in ``"quantization_config"`` for the
whole model.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping
from functools import partial
from typing import Any

from bench.families.config_values import shown
from bench.families.expression import evaluate, names
from bench.families.family_file import FamilyFile
from bench.families.form_config import FORM_KEY, form_document
from bench.families.known_families import expert_keys
from bench.families.quantization_config import quantization_config
from bench.families.stored_config import stored_config
from bench.families.wrapped_config import is_wrapped, wrapped_name
from methods.framework.errors import CheckpointError, PlanError
from methods.framework.inventory import EXPERT_ROLES, Inventory, LayerInventory, Packing
from methods.framework.linears import whole_linear
from methods.framework.plan import Plan

PREFIX = "Moebench"
"""Prefix of the architecture of a checkpoint whose layers differ; stock loaders do not know such a name."""

MAP_KEY = "expert_map"
"""Key of a layer whose router rows do not each lead to an expert of their own."""

CONSTANTS_KEY = "constant_experts"
"""Key of a layer that stores constant vectors in place of experts: how many."""

QUANTISATION_KEY = "quantization_config"
"""Key of a model whose weights are stored in few bits, in transformers' and vLLM's own form."""

OWN_KEYS: Mapping[str, Any] = {MAP_KEY: None, CONSTANTS_KEY: 0, FORM_KEY: None}
"""Keys that no stock config has, with their values for a model in which no layer states them."""

_NUMBER = re.compile(r"[0-9]{1,9}", re.ASCII)


def layer_overrides(family: FamilyFile, config: Mapping[str, Any]) -> dict[int, dict[str, Any]]:
    """Return the ``per_layer_config`` of ``config`` by layer index, every spelling of a key filled in.

    Raises:
        CheckpointError: it is no mapping of layers to mappings, names a layer that does not exist, or a key that is neither
            expert count, top-k, map nor form.
    """
    stated = config.get("per_layer_config") or {}
    if not isinstance(stated, Mapping):
        raise CheckpointError(f"per_layer_config holds {shown(stated)}; allowed: layers by number with their keys")
    layers = config.get(family.keys.layers) or 0
    spellings = (family.keys.experts, family.keys.top_k)
    allowed = {*OWN_KEYS, *(key for keys in spellings for key in keys)}
    found: dict[int, dict[str, Any]] = {}
    for text, override in stated.items():
        # Only plain digits: int() would take "1_0", " 3" and the digits of other scripts.
        index = int(text) if _NUMBER.fullmatch(str(text)) else -1
        if not 0 <= index < layers or index in found:
            raise CheckpointError(
                f"per_layer_config names layer {str(text)[:60]}; the model has 0 to {layers - 1}, each once"
            )
        if not isinstance(override, Mapping):
            raise CheckpointError(f"per_layer_config of layer {index} is {shown(override)}; allowed: keys with values")
        if unknown := set(override) - allowed:
            raise CheckpointError(
                f"per_layer_config of layer {text} states {', '.join(sorted(unknown))}, which cannot be read here; "
                f"allowed: {', '.join(sorted(allowed))}"
            )
        found[index] = {key: override[key] for key in OWN_KEYS if key in override}
        for keys in spellings:
            values = [override[key] for key in keys if key in override]
            if values and (any(type(value) is not int or value < 0 for value in values) or len(set(values)) > 1):
                raise CheckpointError(
                    f"per_layer_config of layer {index} states {keys[0]} as {shown(values[0])}; allowed: one integer from 0 on"
                )
            if values:
                found[index].update(dict.fromkeys(keys, values[0]))
    return found


def read_map(mapped: Any, constants: Any, rows: int, layer: int) -> tuple[int, int]:
    """Return how many experts and constants a layer stores, from what its config states about them.

    Args:
        mapped: value of ``MAP_KEY``.
        constants: value of ``CONSTANTS_KEY``.
        rows: router rows of the layer.
        layer: its index, for messages.

    Raises:
        CheckpointError: the map is damaged.
    """

    def damaged(found: str) -> CheckpointError:
        return CheckpointError(
            f"{MAP_KEY} of layer {layer} in config.json is damaged: {found}. It must hold one place for each of the "
            f"{rows} router rows, and every place from 0 on must occur; fetch or write the checkpoint again"
        )

    numbers = isinstance(mapped, list | tuple) and all(isinstance(e, int) and not isinstance(e, bool) for e in mapped)
    if not numbers:
        raise damaged(f"it is {str(mapped)[:60]}, not a list of integers")
    if len(mapped) != rows or not rows:
        raise damaged(f"it has {len(mapped)} entries")
    if outside := [place for place in mapped if not 0 <= place < rows]:
        raise damaged(f"entry {outside[0]} is out of range")
    places = max(mapped) + 1
    if unused := sorted(set(range(places)) - set(mapped)):
        raise damaged(f"no row leads to place {unused[0]}, though one leads to place {places - 1}")
    if not isinstance(constants, int) or isinstance(constants, bool) or not 0 <= constants < places:
        raise damaged(f"{CONSTANTS_KEY} is {constants!r} with {places} places, at least one of which is an expert")
    return places - constants, constants


def compressed_config(family: FamilyFile, config: Mapping[str, Any], plan: Plan, result: Inventory) -> dict[str, Any]:
    """Return the config that describes ``result`` (see ``Family.config_for``).

    Args:
        family: the file of the architecture.
        config: content of the source's ``config.json``, left as it is.
        plan: what becomes of each of its layers.
        result: inventory of what the plan makes of it.

    Raises:
        PlanError: no config can state this result.
    """
    if family.norm_offset and any(layer.bits is not None and layer.bits.kernel == "awq" for layer in plan.layers):
        raise PlanError(
            f"{family.name} stores its norms less {family.norm_offset:g}, into which AWQ folds no scale here"
        )
    written = copy.deepcopy(dict(config))
    for key in ("per_layer_config", QUANTISATION_KEY, *OWN_KEYS):
        written.pop(key, None)
    survivors = [index for index, layer in enumerate(plan.layers) if layer.drop != "block"]
    if len(survivors) < len(plan.layers):
        _drop_blocks(family, written, survivors, result)
    moe = [layer for layer in result.layers if layer.mlp == "moe"]
    if moe:
        # A source that states several spellings must agree with itself after compression too.
        spellings = {*family.keys.experts, *(expert_keys() & written.keys())}
        written.update(dict.fromkeys(sorted(spellings), max(layer.rows for layer in moe)))
        written.update(dict.fromkeys(family.keys.top_k, max(layer.top_k for layer in moe)))
    overrides = {}
    for index, layer in enumerate(result.layers):
        if override := _override(family, written, layer):
            overrides[str(index)] = override
    stock = [name.removeprefix(PREFIX) for name in config.get("architectures") or [family.architecture] if name]
    if family.wrapper is not None:
        # Some tools state the larger model's class for a language model that they saved alone, which then loads nowhere.
        if is_wrapped(family, result.config):
            stock = stock if config.get("architectures") else [family.wrapper.architecture]
        else:
            stock = [family.architecture] if family.architecture else stock
    if overrides:
        # Transformers wants a value for the whole model of every key that some layers state and others do not.
        stated = {key for override in overrides.values() for key in override}
        written.update({key: value for key, value in OWN_KEYS.items() if key in stated})
        written["per_layer_config"] = overrides
        written["architectures"] = [PREFIX + name for name in stock]
    else:
        written["architectures"] = stock
    written.update(family.result)
    if any(entry.stored for entry in result.tensors()):
        written[QUANTISATION_KEY] = stored_config(
            config, plan, result, any(rule.written for rule in family.tensors.fused)
        )
    bits = {index: layer.form.bits for index, layer in enumerate(result.layers) if layer.form and layer.form.bits}
    linears = _packed_linears(result)
    if bits or linears:
        if QUANTISATION_KEY in written:
            raise PlanError(
                "a config cannot state matrices in few bits beside others that the source stores in another way; put those "
                "of the 16-bit checkpoint in few bits"
            )
        tensors = family.tensors
        named = partial(wrapped_name, family) if is_wrapped(family, result.config) else str
        experts = [named(rule.name) for rule in tensors.moe if rule.role in EXPERT_ROLES]
        rules = (*tensors.outer, *tensors.layer, *tensors.dense, *tensors.moe)
        others = [named(rule.name) for rule in rules if rule.role not in EXPERT_ROLES]
        written[QUANTISATION_KEY] = quantization_config(experts, others, bits, linears)
    return written


def _packed_linears(result: Inventory) -> dict[str, dict[int, Packing]]:
    """Return, for templates of linear layers beside the experts, how each layer packs them."""
    found: dict[str, dict[int, Packing]] = {}
    for index, layer in enumerate(result.layers):
        for entry in layer.tensors:
            whole = whole_linear(entry)
            if whole is not None and layer.linear_bits is not None:
                found.setdefault(whole.template, {})[index] = layer.linear_bits
    return found


def _override(family: FamilyFile, written: Mapping[str, Any], layer: LayerInventory) -> dict[str, Any]:
    """Return the keys in which ``layer`` departs from the model's values."""
    if layer.mlp == "dense":
        return {}
    override: dict[str, Any] = {}
    if layer.rows != written[family.keys.experts[0]]:
        override.update(dict.fromkeys(family.keys.experts, layer.rows))
    if layer.mlp == "moe" and layer.top_k != written[family.keys.top_k[0]]:
        override.update(dict.fromkeys(family.keys.top_k, layer.top_k))
    if layer.expert_map is not None:
        override[MAP_KEY] = list(layer.expert_map)
    if layer.constants:
        override[CONSTANTS_KEY] = layer.constants
    if document := form_document(layer.form):
        override[FORM_KEY] = document
    return override


def _drop_blocks(family: FamilyFile, written: dict[str, Any], survivors: list[int], result: Inventory) -> None:
    """Renumber what the config states layer by layer."""
    known = names(family.defaults, written)
    for requirement in family.block_drop_requires:
        if not evaluate(requirement.test, known):
            raise PlanError(f"decoder layers of this model cannot be dropped: {requirement.reason}")
    for key, meant in family.keys.derived_lists.items():
        if written.get(key) in (None, []):
            written[key] = [
                evaluate(meant, names(known, {"layer": index})) for index in range(written[family.keys.layers])
            ]
    for key in (*family.keys.per_layer_lists, *family.keys.derived_lists):
        values = written.get(key)
        if isinstance(values, list):
            written[key] = [values[index] for index in survivors]
    written[family.keys.layers] = len(survivors)
    if family.layers.kinds is not None:
        kinds = family.layers.kinds
        written[kinds.key] = [kinds.dense if layer.mlp == "dense" else kinds.moe for layer in result.layers]
    dense = [index for index, layer in enumerate(result.layers) if layer.mlp == "dense"]
    if family.layers.dense_prefix is not None:
        if dense != list(range(len(dense))):
            raise PlanError(
                f"dense layers {dense} are no longer the first ones, which {family.name} configs cannot state"
            )
        written[family.layers.dense_prefix] = len(dense)
    if family.layers.dense_list is not None:
        written[family.layers.dense_list] = dense
        written.update(family.layers.neutral)
    if family.layers.moe_list is not None:
        written[family.layers.moe_list] = [index for index in range(len(survivors)) if index not in dense]
    if family.layers.span is not None:
        sparse = [index for index in range(len(survivors)) if index not in dense]
        if sparse != list(range(sparse[0], sparse[0] + len(sparse)) if sparse else []):
            raise PlanError(
                f"dense layers {dense} stand between layers with experts, which {family.name} configs cannot state"
            )
        first, last = family.layers.span
        written.update({first: sparse[0], last: sparse[-1]} if sparse else {first: len(survivors), last: 0})
        written.update(family.layers.neutral)
