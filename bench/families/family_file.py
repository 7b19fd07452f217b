"""Schema of a family file: tensor names, shapes, router semantics and config keys of one model family, as data.

Expressions see the symbols of the file (``D``, ``E``, ...), the keys of the model's config, ``layer`` where a rule is
for one layer, and ``defaults`` for keys that a config may leave out; any other key is None.
"""

from __future__ import annotations

import tomllib
from importlib.resources import files
from importlib.resources.abc import Traversable
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from bench.families.expression import parse
from methods.framework.errors import ConfigError


def _expression(text: str) -> str:
    try:
        parse(text)
    except ConfigError as error:
        raise ValueError(str(error)) from None
    return text


def _shape(text: str) -> str:
    for part in text.split(","):
        _expression(part)
    return text


Expression = Annotated[str, AfterValidator(_expression)]
Shape = Annotated[str, AfterValidator(_shape)]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class TensorRule(_Part):
    """A tensor: ``name`` on disk with ``{layer}`` and ``{expert}``, ``module`` its transformers name if different."""

    role: str
    name: str
    shape: Shape
    when: Expression = "True"
    module: str | None = None


class FusedRule(_Part):
    """A 3-D tensor [E, rows, columns] that holds the matrices of ``roles`` one below the other for each expert.

    ``names`` are the names under which checkpoints hold it; the first is also its transformers name.
    """

    roles: tuple[str, ...]
    names: tuple[str, ...]


class RouterRule(_Part):
    """Router semantics (``methods.framework.inventory.Router``); text fields other than the two literals are expressions."""

    score: Literal["softmax", "sigmoid"]
    renormalise: Expression
    scale: Expression = "1.0"
    groups: Expression = "1"
    groups_kept: Expression = "1"
    group_score: Literal["max", "top2_sum"] = "max"
    correction_bias: bool = False
    gated_shared: bool = False
    eps: float = 0.0


class AttentionRule(_Part):
    """Sizes that FLOPs depend on."""

    heads: Expression
    qk_head_dim: Expression
    v_head_dim: Expression


class KeysRule(_Part):
    """Config keys that a compressed checkpoint changes; the first spelling is the one transformers stores."""

    layers: str = "num_hidden_layers"
    experts: tuple[str, ...]
    top_k: tuple[str, ...] = ("num_experts_per_tok",)
    per_layer_lists: tuple[str, ...] = ()


class LayersRule(_Part):
    """Which decoder layers are MoE, and how a config states the dense ones.

    Args:
        moe: expression in ``layer``.
        dense_prefix: key that counts the dense layers at the start.
        dense_list: key that lists dense layers by index.
        neutral: keys set when ``dense_list`` states everything.
    """

    moe: Expression = "True"
    dense_prefix: str | None = None
    dense_list: str | None = None
    neutral: dict[str, int] = Field(default_factory=dict)


class Requirement(_Part):
    """A condition on the config, and the reason for refusing a model that does not meet it."""

    test: Expression
    reason: str


class Ignorable(_Part):
    """Tensors that a checkpoint may hold and that are not read: a glob that may contain ``{L}``."""

    name: str
    when: Expression = "True"


class TensorsRule(_Part):
    """All tensors: outside the layers, in every layer, and by kind of feed-forward sub-layer."""

    outer: tuple[TensorRule, ...]
    layer: tuple[TensorRule, ...]
    dense: tuple[TensorRule, ...] = ()
    moe: tuple[TensorRule, ...]
    fused: tuple[FusedRule, ...] = ()
    ignorable: tuple[Ignorable, ...] = ()


class FamilyFile(_Part):
    """One family.

    Args:
        name: the family's key.
        model_types: values of ``model_type`` that it covers.
        architecture: transformers class of the causal language model; None where transformers has none.
        defaults: values of keys that configs of this family may leave out.
        symbols: shape letters; D hidden, V vocabulary, L layers, E experts and K experts per token are required.
        result: keys that every written config gets, for parts of a model that are not carried over.
        requires: conditions on the config.
        block_drop_requires: conditions for dropping decoder layers.
    """

    name: str
    model_types: tuple[str, ...]
    architecture: str | None = None
    defaults: dict[str, Any] = Field(default_factory=dict)
    symbols: dict[str, Expression]
    result: dict[str, int] = Field(default_factory=dict)
    keys: KeysRule
    attention: AttentionRule
    router: RouterRule
    layers: LayersRule = LayersRule()
    tensors: TensorsRule
    requires: tuple[Requirement, ...] = ()
    block_drop_requires: tuple[Requirement, ...] = ()


def read_family_file(path: Traversable) -> FamilyFile:
    """Read one family file.

    Raises:
        ConfigError: not TOML, an unknown key, or a value that is not allowed; the message names the place.
    """
    try:
        family = FamilyFile.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"family file {path.name} is not TOML: {error}") from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ConfigError(f"family file {path.name}: {where}: {first['msg']}") from None
    if missing := {"D", "V", "L", "E", "K"} - family.symbols.keys():
        raise ConfigError(f"family file {path.name}: symbols lacks {', '.join(sorted(missing))}")
    return family


def family_files() -> tuple[Traversable, ...]:
    """Return the family files that ship with the package, by name."""
    folder = files("bench") / "families"
    return tuple(sorted((p for p in folder.iterdir() if p.name.endswith(".toml")), key=lambda p: p.name))
