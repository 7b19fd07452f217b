"""Schema of a family file: tensor names, shapes, router semantics and config keys of one model family, as data.

Expressions see the symbols of the file (``D``, ``E``, ...), the keys of the model's config, ``layer`` where a rule is
for one layer, and ``defaults`` for keys that a config may leave out; any other key is None. Where the file states values of a
config, the text ``None`` stands for no value, which TOML cannot say.
"""

from __future__ import annotations

import tomllib
from importlib.resources import files
from importlib.resources.abc import Traversable
from typing import Any, Literal

from pydantic import Field, ValidationError

from bench.families.rule_parts import Expression, Part, Shape, Values
from methods.framework.errors import ConfigError
from methods.framework.wording import wording


class TensorRule(Part):
    """A tensor: ``name`` on disk with ``{layer}`` and ``{expert}``, ``module`` its transformers name if different.

    ``unit_axes`` counts axes of one entry that stand before those of ``shape``, on disk and in transformers.

    What runs in transformers is found by these names: the norm before the MoE block by that of ``norm.mlp``, the router by that
    of ``router.weight``. The last part of a router's names are the attributes that hold one row for each expert.
    """

    role: str
    name: str
    shape: Shape
    when: Expression = "True"
    module: str | None = None
    unit_axes: int = Field(default=0, ge=0)


class FusedRule(Part):
    """A tensor [E, rows, columns] that holds the matrices of ``roles`` one below the other for each expert.

    ``names`` are the names under which checkpoints hold it, that of written ones first. Of its transformers name, the module that
    it ends is the one that runs the routed experts, and the module around that the MoE block.

    Args:
        roles: of the matrices, or of biases, for which it is [E, rows].
        names: see above.
        module: its transformers name, where that is not the first of ``names``.
        transposed: whether transformers holds [E, columns, rows].
        swapped: whether files have these two axes the other way round than transformers; both ways are read.
        interleaved: whether the rows of the matrices alternate.
        written: whether files must have it, since no reader takes the matrices one by one.
    """

    roles: tuple[str, ...]
    names: tuple[str, ...]
    module: str | None = None
    transposed: bool = False
    swapped: bool = False
    interleaved: bool = False
    written: bool = False

    @property
    def parameter(self) -> str:
        """Its transformers name."""
        return self.module or self.names[0]


class RouterRule(Part):
    """Router semantics (``methods.framework.inventory.Router``); text fields other than literals and names are expressions.

    ``module`` is the transformers name of the module that chooses, where the router's weight is no parameter of its own, and
    ``returns`` the order of what that gives back; ``scores`` has a column for each expert, 0 where that is not chosen.
    ``in_block`` says that the router gives logits alone and the MoE block chooses.
    ``weighs_inputs`` says that scores multiply what experts take in: the module of the experts gets it for all tokens and each
    expert, one expert behind the other.
    """

    score: Literal["softmax", "sigmoid", "sparsemixer"]
    renormalise: Expression
    scale: Expression = "1.0"
    groups: Expression = "1"
    groups_kept: Expression = "1"
    group_score: Literal["max", "top2_sum"] = "max"
    correction_bias: bool | Expression = False
    gated_shared: bool = False
    eps: float = 0.0
    floor: Expression = "0.0"
    jitter: Expression = "0.0"
    module: str | None = None
    returns: tuple[Literal["logits", "weights", "experts", "scores"], ...] = ("logits", "weights", "experts")
    in_block: bool = False
    weighs_inputs: bool = False


class GatingRule(Part):
    """Channels of experts that are no act(gate) * up: ``methods.kernels.experts.ClampedSwiglu``, by expressions."""

    alpha: Expression
    limit: Expression


class AttentionRule(Part):
    """Sizes that FLOPs depend on."""

    heads: Expression
    qk_head_dim: Expression
    v_head_dim: Expression


class KeysRule(Part):
    """Config keys that a compressed checkpoint changes; the first spelling is the one transformers stores.

    In a dense family ``experts`` is the width of the feed-forward network: what a layer states as 0 where that was dropped.
    ``per_layer_lists`` have an entry for each decoder layer, or are one value for all. ``derived_lists`` are such lists that a
    config may leave out: their expression in ``layer`` says what is meant then, and they are stated once decoder layers have
    gone.
    """

    layers: str = "num_hidden_layers"
    experts: tuple[str, ...]
    top_k: tuple[str, ...] = ("num_experts_per_tok",)
    per_layer_lists: tuple[str, ...] = ()
    derived_lists: dict[str, Expression] = Field(default_factory=dict)


class SublayerRule(Part):
    """What becomes of the output of a feed-forward sub-layer before it is added to the residual stream.

    Args:
        norm: role of the norm that it passes.
        scale: factor on it.
    """

    norm: str | None = None
    scale: Expression = "1.0"


class HeadRule(Part):
    """What becomes of the products of the final states with the output head: c tanh(x / (d c)), for d alone x / d.

    Args:
        divisor: d.
        cap: c; None: there is none.
    """

    divisor: Expression = "1.0"
    cap: Expression = "None"


class KindsRule(Part):
    """A list in the config that names the kind of each layer's feed-forward sub-layer."""

    key: str
    moe: str
    dense: str


class LayersRule(Part):
    """Which decoder layers are MoE, and how a config states the dense ones.

    Args:
        moe: expression in ``layer``.
        dense_prefix: key that counts the dense layers at the start.
        dense_list: key that lists dense layers by index.
        moe_list: key that lists the MoE layers by index; it is stated where decoder layers have gone.
        span: keys that hold the first and the last MoE layer.
        kinds: list that names the kind of each layer.
        neutral: keys set when ``dense_list`` or ``span`` states everything.
    """

    moe: Expression = "True"
    dense_prefix: str | None = None
    dense_list: str | None = None
    moe_list: str | None = None
    span: tuple[str, str] | None = None
    kinds: KindsRule | None = None
    neutral: dict[str, int] = Field(default_factory=dict)


class Requirement(Part):
    """A condition on the config, and the reason for refusing a model that does not meet it."""

    test: Expression
    reason: str


class Ignorable(Part):
    """Tensors that a checkpoint may hold and that are not read: a glob that may contain ``{L}``.

    ``count`` is the number of layers from ``{L}`` on that it stands for.
    """

    name: str
    when: Expression = "True"
    count: Expression = "1"


class TensorsRule(Part):
    """All tensors: outside the layers, in every layer, and by kind of feed-forward sub-layer."""

    outer: tuple[TensorRule, ...]
    layer: tuple[TensorRule, ...]
    dense: tuple[TensorRule, ...] = ()
    moe: tuple[TensorRule, ...] = ()
    fused: tuple[FusedRule, ...]
    ignorable: tuple[Ignorable, ...] = ()


class WrapperRule(Part):
    """The larger model, with vision or sound, that a language model may be a part of; only the language model is compressed.

    Args:
        model_types: values of ``model_type`` of the larger model.
        architecture: its transformers class.
        config: key under which its config holds that of the language model.
        prefix: beginning of names in the language model, and what it is in the larger one.
        modules: the same in transformers, where files call them otherwise.
        saved: beginning of names in files that transformers writes, and what it is in published ones, where these differ.
        inner: further values of ``model_type`` that the language model may state within the larger one.
        passed: globs of its other tensors, which every result gets as they are.
        alone: whether transformers runs the language model alone under its own ``model_type``.
        tiny: keys of the config of the tiny one, beside those of the language model.
    """

    model_types: tuple[str, ...]
    architecture: str
    config: str = "text_config"
    prefix: tuple[str, str]
    modules: tuple[str, str] | None = None
    saved: tuple[str, str] | None = None
    inner: tuple[str, ...] = ()
    passed: tuple[str, ...]
    alone: bool = True
    tiny: Values = Field(default_factory=dict)


class VllmRule(Part):
    """Where vLLM has its own classes for a family, so that our plug-in can serve layers that differ.

    Args:
        module: Python module that defines the class of the model.
        block: name of the class of the MoE block in that module.
        architecture: name of that class where it is not ``FamilyFile.architecture``; vLLM knows the model by it.
        parts: module that builds the router and the experts of the block, where that is another.
        one_group: whether it gives its router a correction bias without groups, which vLLM's router for processors does not
            know; our class then states the one group that there is.
        plain_rotary: whether it hands queries head by head to the rotary embedding, whose kernel for processors turns them
            wrongly.
    """

    module: str
    block: str
    architecture: str | None = None
    parts: str | None = None
    one_group: bool = False
    plain_rotary: bool = False


class FamilyFile(Part):
    """One family.

    Args:
        name: the family's key.
        like: family of the package whose file this one begins with: tables are filled up with its keys, the text ``None`` takes
            one away (but for values of configs), lists replace its own, and ``tensors.also`` adds to them.
        dense: no layer has routed experts; decoder layers and feed-forward sub-layers can be dropped, and nothing else.
        model_types: values of ``model_type`` that it covers.
        architecture: transformers class of the causal language model; None where transformers has none.
        loads_as: ``model_type`` under which transformers has it, where that is none of its own.
        loads_with: values of keys that transformers needs and that configs of this family may call otherwise.
        defaults: values of keys that configs of this family may leave out.
        symbols: shape letters; D hidden, V vocabulary, L layers, E experts and K experts per token are required.
        layer_symbols: further ones, expressions in ``layer``.
        result: keys that every written config gets, for parts of a model that are not carried over.
        wrapper: the larger model that it may be a part of.
        gating: how experts make channels, where that is not act(gate) * up.
        block_outputs: values that a feed-forward block of transformers returns; the first goes to the residual stream.
        requires: conditions on the config.
        layer_requires: conditions in ``layer`` that each decoder layer meets.
        block_drop_requires: conditions for dropping decoder layers.
        vllm: vLLM's classes; None where the plug-in does not serve the family.
        published: values of the tiny model's config, as published models have them, without which vLLM does not take it.
        norm_offset: added to the stored weights of norms before they multiply.
        embedding_scale: factor on the embeddings of tokens.
        sublayer: what becomes of the output of feed-forward sub-layers.
        head: what becomes of the output head's products.
        layer_outputs: values that a decoder layer of transformers returns; the first is the residual stream.
        laws: ``every`` method is tried on it in the project's own tests, or a ``covering`` choice, one of each kind.
        tiny: keys of the config of the tiny model on which laws and tests are tried, beside the sizes that
            ``bench.models.tiny`` gives to all families; None where transformers cannot build one.
        variant: keys in which a second tiny model differs, so that tensors which ``tiny`` lacks are there, and the reverse.
    """

    name: str
    like: str | None = None
    dense: bool = False
    model_types: tuple[str, ...]
    architecture: str | None = None
    loads_as: str | None = None
    loads_with: dict[str, Expression] = Field(default_factory=dict)
    defaults: dict[str, Any] = Field(default_factory=dict)
    symbols: dict[str, Expression]
    layer_symbols: dict[str, Expression] = Field(default_factory=dict)
    result: dict[str, int] = Field(default_factory=dict)
    keys: KeysRule
    attention: AttentionRule
    router: RouterRule
    layers: LayersRule = LayersRule()
    tensors: TensorsRule
    wrapper: WrapperRule | None = None
    gating: GatingRule | None = None
    block_outputs: int = 1
    requires: tuple[Requirement, ...] = ()
    layer_requires: tuple[Requirement, ...] = ()
    block_drop_requires: tuple[Requirement, ...] = ()
    vllm: VllmRule | None = None
    published: Values = Field(default_factory=dict)
    norm_offset: float = 0.0
    embedding_scale: Expression = "1.0"
    sublayer: SublayerRule = SublayerRule()
    head: HeadRule = HeadRule()
    layer_outputs: int = 1
    laws: Literal["every", "covering"] = "covering"
    tiny: Values | None = None
    variant: Values = Field(default_factory=dict)

    @property
    def all_model_types(self) -> tuple[str, ...]:
        """Values of ``model_type`` that it covers, those of its wrapper too."""
        return (*self.model_types, *(self.wrapper.model_types if self.wrapper is not None else ()))


def read_family_file(path: Traversable) -> FamilyFile:
    """Read one family file.

    Raises:
        ConfigError: not TOML, an unknown key, or a value that is not allowed; the message names the place.
    """
    try:
        document = _document(path)
        family = FamilyFile.model_validate(document)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"family file {path.name} is not TOML: {error}") from None
    except ValidationError as error:
        raise ConfigError(f"family file {path.name}: {wording(error, document)}") from None
    if family.dense == bool(family.tensors.moe) or family.dense == bool(family.tensors.fused):
        raise ConfigError(
            f"family file {path.name}: a family states tensors.moe and tensors.fused, one with dense = true neither"
        )
    if missing := {"D", "V", "L", "E", "K"} - family.symbols.keys():
        raise ConfigError(f"family file {path.name}: symbols lacks {', '.join(sorted(missing))}")
    return family


def _document(path: Traversable) -> dict[str, Any]:
    """Return the content of a family file, with that of the one that it is like below it."""
    own = tomllib.loads(path.read_text(encoding="utf-8"))
    if not isinstance(like := own.get("like"), str):
        return own
    before = files("bench") / "families" / f"{like}.toml"
    if like == own.get("name") or not like.isidentifier() or not before.is_file():
        raise ConfigError(f"family file {path.name}: like names {like!r}, which is no family of the package")
    merged = _merged(_document(before), own, ())
    tensors = merged["tensors"]
    for part, rules in tensors.pop("also", {}).items():
        tensors[part] = [*tensors.get(part, []), *rules]
    return merged


def _merged(before: dict[str, Any], own: dict[str, Any], place: tuple[str, ...]) -> dict[str, Any]:
    """Return ``own`` filled up with the keys of ``before``."""
    merged = dict(before)
    for key, value in own.items():
        if isinstance(value, dict) and isinstance(merged.get(key), dict):
            merged[key] = _merged(merged[key], value, (*place, key))
        elif value == "None" and place[:1] not in (("tiny",), ("variant",)):
            merged.pop(key, None)
        else:
            merged[key] = value
    return merged
