"""Families of models: what a config alone says about a checkpoint, and which config a compressed one gets.

Each family is one file (schema in ``bench.families.family_file``); there is no code for any one of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import TYPE_CHECKING, Any

from bench.families.compressed_config import (
    CONSTANTS_KEY,
    MAP_KEY,
    compressed_config,
    layer_overrides,
    read_map,
)
from bench.families.config_values import MOST_LAYERS, check_counts, check_values, shown
from bench.families.expression import evaluate, names
from bench.families.family_file import TensorRule
from bench.families.form_config import FORM_KEY, read_form
from bench.families.known_families import read_families
from bench.families.layout import Layout
from bench.families.quantization_config import Packed, read_quantization
from bench.families.source_formats import stored_formats
from bench.families.unsupported import UNSUPPORTED
from bench.families.wrapped_config import check_wrapped, is_wrapped, language_config, rewrapped, wrapped_name
from methods.framework.errors import CheckpointError, ConfigError, NotMoEError
from methods.framework.forms import formed
from methods.framework.inventory import (
    CONSTANT_ROLE,
    EXPERT_BIAS_ROLES,
    EXPERT_ROLES,
    MLP_NORMS,
    Attention,
    Inventory,
    LayerInventory,
    MlpKind,
    Router,
    TensorEntry,
)
from methods.framework.plan import Plan
from methods.framework.transfer import constant_template

if TYPE_CHECKING:
    from methods.kernels.experts import ClampedSwiglu

_DTYPES = {"float64": "F64", "float32": "F32", "bfloat16": "BF16", "float16": "F16"}


@dataclass(frozen=True, eq=False)
class Family(Layout):
    """One family of MoE models, as its file states it."""

    @property
    def name(self) -> str:
        """Key of the family."""
        return self.file.name

    @property
    def architecture(self) -> str | None:
        """Name of the transformers class, None where transformers has none."""
        return self.file.architecture

    def inventory(self, config: Mapping[str, Any]) -> Inventory:
        """Return what a checkpoint with this config contains, in the config's dtype, without looking at any file.

        Raises:
            CheckpointError: the config lacks a key, or holds one that makes no sense.
        """
        try:
            inventory = self._inventory(self.language_config(config))
        except ConfigError as error:
            raise CheckpointError(f"this {self.name} config cannot be read: {error}") from error
        if is_wrapped(self.file, config):
            inventory = self._within(inventory, config)
        stored = stored_formats(self.language_config(config))
        return inventory if stored is None else stored.expected(inventory)

    def language_config(self, config: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return the config of the language model, which that of a larger model holds within itself."""
        return language_config(self.file, config)

    def passed(self, config: Mapping[str, Any]) -> tuple[str, ...]:
        """Return globs of tensors that are no part of the language model and that every result gets as they are."""
        return self.file.wrapper.passed if self.file.wrapper is not None and is_wrapped(self.file, config) else ()

    def gating(self, config: Mapping[str, Any]) -> ClampedSwiglu | None:
        """Return how experts make channels of their products with gate and up; None: by the activation of the config."""
        rule = self.file.gating
        if rule is None:
            return None
        from methods.kernels.experts import ClampedSwiglu

        known = self._names(self.language_config(config))
        return ClampedSwiglu(float(evaluate(rule.alpha, known)), float(evaluate(rule.limit, known)))

    def check(self, config: Mapping[str, Any]) -> None:
        """Check that a config of this family has routed experts and asks for nothing that the family cannot do.

        Raises:
            NotMoEError: no routed experts.
            CheckpointError: a key is missing, or has a value that is refused.
        """
        config = self.language_config(config)
        try:
            symbols = self._names(config)
            layers = _integer("L", symbols)
            overrides = layer_overrides(self.file, config).values()
        except ConfigError as error:
            raise CheckpointError(f"this {self.name} config cannot be read: {error}") from error
        keys = self.file.keys.experts
        counted = () if self.file.dense else (symbols["E"], *(override.get(keys[0]) for override in overrides))
        for count in (0, *counted):
            check_counts(layers, count if isinstance(count, int) else 0, keys[0])
        if not self.file.dense and not symbols["E"] and not any(override.get(keys[0]) for override in overrides):
            count = "no" if symbols["E"] is None else symbols["E"]
            stated = f"{count} experts ({' or '.join(keys)})"
            raise NotMoEError(f"a {self.name} config with {stated} is not a MoE model. Known families: {_known()}.")
        for requirement in self.file.requires:
            if not evaluate(requirement.test, symbols):
                raise CheckpointError(f"this {self.name} model is refused: {requirement.reason}")

    def config_for(self, config: Mapping[str, Any], plan: Plan, result: Inventory) -> dict[str, Any]:
        """Return the config of the compressed checkpoint.

        Equal layers give a config that stock transformers and vLLM load. Layers that differ are stated in transformers'
        own ``per_layer_config``, and the architecture is then ``Moebench<stock>``, so that neither loads it wrongly.

        Args:
            config: config of the source.
            plan: what becomes of each of its layers.
            result: ``methods.framework.transfer.result(plan, inventory)``.

        Raises:
            PlanError: no config can state this result.
        """
        written = compressed_config(self.file, self.language_config(config), plan, result)
        return rewrapped(self.file, config, written)

    def loads_with(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """Return the keys that transformers needs beside those of ``config``, with their values."""
        known = self._names(self.language_config(config)) if self.file.loads_with else {}
        return {key: evaluate(value, known) for key, value in self.file.loads_with.items()}

    def embedding_scale(self, config: Mapping[str, Any]) -> float:
        """Return the factor on the embeddings of tokens."""
        return float(evaluate(self.file.embedding_scale, self._names(self.language_config(config))))

    def block_outputs(self, mlp: str) -> int:
        """Return how many values a feed-forward block of transformers returns; ``mlp`` is the kind of the source's."""
        return 1 if mlp == "dense" and not self.file.dense else self.file.block_outputs

    def sublayer_scale(self, config: Mapping[str, Any]) -> float:
        """Return the factor on the output of feed-forward sub-layers."""
        return float(evaluate(self.file.sublayer.scale, self._names(self.language_config(config))))

    def head(self, config: Mapping[str, Any]) -> tuple[float, float | None]:
        """Return what divides the products of states with the output head, and the cap on the quotient's size, if any."""
        known = self._names(self.language_config(config))
        cap = evaluate(self.file.head.cap, known)
        return float(evaluate(self.file.head.divisor, known)), None if cap is None else float(cap)

    def ignorable(self, config: Mapping[str, Any]) -> tuple[str, ...]:
        """Return globs of tensors that files may hold and that are not part of the model."""
        known = self._names(self.language_config(config))
        rules = (rule for rule in self.file.tensors.ignorable if evaluate(rule.when, known))
        globs = (
            rule.name.replace("{L}", str(known["L"] + further))
            for rule in rules
            for further in range(min(evaluate(rule.count, known), MOST_LAYERS))
        )
        return tuple(dict.fromkeys(globs))

    def _within(self, inventory: Inventory, config: Mapping[str, Any]) -> Inventory:
        """Return the inventory of a language model with the names and the config that it has within the larger model."""

        def renamed(entry: TensorEntry) -> TensorEntry:
            return replace(entry, template=wrapped_name(self.file, entry.template))

        layers = tuple(replace(layer, tensors=tuple(map(renamed, layer.tensors))) for layer in inventory.layers)
        outer = tuple(map(renamed, inventory.outer))
        return replace(inventory, layers=layers, outer=outer, config=dict(config))

    def _inventory(self, config: Mapping[str, Any]) -> Inventory:
        known = self._names(config)
        overrides = layer_overrides(self.file, config)
        dtype = _DTYPES.get(str(config.get("dtype") or config.get("torch_dtype") or "float32").removeprefix("torch."))
        if dtype is None:
            raise ConfigError(
                f"dtype {config.get('dtype') or config.get('torch_dtype')!r} is unknown; known: {', '.join(_DTYPES)}"
            )
        count = _integer("L", known)
        stored = stored_formats(config)
        packed = read_quantization(config, count) if stored is None else Packed({}, {})
        layers = []
        for index in range(count):
            here = known if index not in overrides else self._names({**config, **overrides[index]})
            layers.append(self._layer(index, here, dtype, overrides.get(index, {}), packed))
        router, attention = self.file.router, self.file.attention
        grouped = evaluate(router.groups, known) or 1
        return Inventory(
            family=self.name,
            hidden=_integer("D", known),
            vocab=_integer("V", known),
            attention=Attention(
                heads=_integer(attention.heads, known),
                qk_head_dim=_integer(attention.qk_head_dim, known),
                v_head_dim=_integer(attention.v_head_dim, known),
            ),
            router=Router(
                score=router.score,
                renormalise=bool(evaluate(router.renormalise, known)),
                scale=float(evaluate(router.scale, known)),
                groups=grouped,
                groups_kept=(evaluate(router.groups_kept, known) or 1) if grouped > 1 else 1,
                group_score=router.group_score,
                correction_bias=_truth(router.correction_bias, known),
                gated_shared=router.gated_shared,
                eps=router.eps,
                floor=float(evaluate(router.floor, known)),
                jitter=float(evaluate(router.jitter, known)),
                weighs_inputs=router.weighs_inputs,
            ),
            layers=tuple(layers),
            outer=tuple(_entries(self.file.tensors.outer, known, dtype)),
            tied_embeddings=bool(known["tie_word_embeddings"]),
            norm_offset=self.file.norm_offset,
            whole_depth=next(
                (one.reason for one in self.file.block_drop_requires if not evaluate(one.test, known)), None
            ),
            config=dict(config),
        )

    def _names(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """Return defaults, config keys and symbols, each symbol seeing those before it."""
        known = names(self.file.defaults, config)
        for symbol, expression in self.file.symbols.items():
            known[symbol] = evaluate(expression, known)
        return known

    def _layer(
        self, index: int, known: dict[str, Any], dtype: str, stated: Mapping[str, Any], packed: Packed
    ) -> LayerInventory:
        """Return layer ``index``; ``stated`` is what the config states about it alone, ``packed`` what about few bits."""
        known["layer"] = index
        for symbol, expression in self.file.layer_symbols.items():
            known[symbol] = evaluate(expression, known)
        for requirement in self.file.layer_requires:
            if not evaluate(requirement.test, known):
                raise ConfigError(f"layer {index}: {requirement.reason}")
        tensors = self.file.tensors
        kind: MlpKind = "dense"
        rows = top_k = 0
        if evaluate(self.file.layers.moe, known):
            rows = _integer("E", known, least=0)
            top_k = min(_integer("K", known), rows)
            if rows and top_k < known["K"]:
                raise ConfigError(
                    f"{known['K']} experts per token ({' or '.join(self.file.keys.top_k)}) are more than the {rows} "
                    f"that layer {index} has"
                )
            kind = "moe" if rows else "none"
        elif self.file.dense and known["E"] == 0:
            kind = "none"
        experts, mapped, constants = rows, None, 0
        if stated.get(MAP_KEY) is not None or stated.get(CONSTANTS_KEY):
            experts, constants = read_map(stated.get(MAP_KEY), stated.get(CONSTANTS_KEY) or 0, rows, index)
            mapped = tuple(stated[MAP_KEY])
        if kind == "none":
            entries = [e for e in _entries(tensors.layer, known, dtype, index) if e.role not in MLP_NORMS]
        else:
            rules = (*tensors.layer, *(tensors.moe if kind == "moe" else tensors.dense))
            entries = list(_entries(rules, known, dtype, index, experts))
        if constants:
            place = next(i for i, entry in enumerate(entries) if entry.role == "router.weight")
            router = entries[place]
            entries.insert(
                place + 1,
                TensorEntry(constant_template(entries[-1]), CONSTANT_ROLE, (constants, router.shape[1]), dtype, index),
            )
        few, linear_bits = packed.experts.get(index), packed.linears.get(index)
        form = read_form(stated.get(FORM_KEY), few, experts, index) if kind == "moe" else None
        tensors_here = formed(entries, form, linear_bits)
        alone = self.file.dense
        return LayerInventory(kind, experts, top_k, tensors_here, mapped, constants, form, linear_bits, alone)


def _entries(
    rules: tuple[TensorRule, ...], known: dict[str, Any], dtype: str, layer: int | None = None, experts: int = 0
) -> Iterator[TensorEntry]:
    """Yield the tensors of ``rules`` for one layer; those of one expert stand together, expert by expert."""
    routed: list[tuple[TensorRule, tuple[int, ...]]] = []
    for rule in rules:
        if not evaluate(rule.when, known):
            continue
        shape = tuple(_integer(part, known) for part in rule.shape.split(","))
        if rule.role in EXPERT_ROLES or rule.role in EXPERT_BIAS_ROLES:
            routed.append((rule, shape))
        else:
            yield TensorEntry(rule.name, rule.role, shape, dtype, layer, unit_axes=rule.unit_axes)
    for expert in range(experts):
        for rule, shape in routed:
            yield TensorEntry(rule.name, rule.role, shape, dtype, layer, expert)


def _truth(value: bool | str, known: dict[str, Any]) -> bool:
    return bool(evaluate(value, known)) if isinstance(value, str) else value


def _integer(expression: str, known: dict[str, Any], least: int = 1) -> int:
    """Return the value of ``expression`` as an integer of at least ``least``."""
    value = evaluate(expression, known)
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ConfigError(
            f"{expression.strip()} is {shown(value)} but must be an integer >= {least}; is a key missing?"
        )
    return value


@cache
def family_named(name: str) -> Family:
    """Return the family called ``name``, which is one of ``families()``."""
    return Family(read_families()[name])


def families() -> tuple[str, ...]:
    """Return the names of all families, sorted."""
    return tuple(read_families())


def _known() -> str:
    return ", ".join(families())


def _states_experts(config: Mapping[str, Any]) -> bool:
    return any(config.get(key) for key in config if "experts" in key and "per_tok" not in key)


def family_of(config: Mapping[str, Any]) -> Family:
    """Return the family of a model from its ``config.json``.

    Raises:
        NotMoEError: no routed experts, or a family without a file.
        CheckpointError: the config contradicts itself or asks for what its family cannot do.
    """
    kind = config.get("model_type")
    if not isinstance(kind, str | None):
        raise CheckpointError(f"config.json states model_type as {shown(kind)}; allowed: the name of a kind of model")
    found = (name for name, file in read_families().items() if kind in file.all_model_types)
    family = next(map(family_named, found), None)
    if family is None:
        reason = UNSUPPORTED.get(kind or "")
        nested = [key for key, part in config.items() if isinstance(part, Mapping) and _states_experts(part)]
        if reason is not None and (nested or _states_experts(config)):
            reason = f"its routed experts cannot be handled: {reason}"
        elif _states_experts(config):
            reason = "its routed experts follow no known family; a new family is one file in bench/families"
        elif nested:
            reason = (
                f"its routed experts are stated in {nested[0]}, a config within its config, and no known family has such "
                "a one"
            )
        else:
            reason = "its config states no routed experts, so it is a dense model and there is nothing to compress here"
        raise NotMoEError(f"model_type {shown(kind)} is refused: {reason}. Known families: {_known()}.")
    check_wrapped(family.file, config)
    keys, inner = family.file.keys, family.language_config(config)
    check_values(inner, (keys.layers, *keys.experts, *keys.top_k), keys.per_layer_lists)
    stated = {key: inner[key] for key in keys.experts if inner.get(key) is not None}
    if len(set(stated.values())) > 1:
        raise CheckpointError(f"the config contradicts itself on the number of experts: {stated}; make them agree")
    family.check(config)
    return family
