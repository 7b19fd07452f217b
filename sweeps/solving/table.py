"""The table of a search: for each unit and option the damage that it does alone, and what it weighs.

A *unit* is a layer, or a matrix of the experts of a layer; an *option* is a setting of the searched knobs. With l_u the
option of unit u, a plan weighs rest + sum_u sizes[u][l_u], exactly, and is predicted to do the damage sum_u damage[u][l_u].
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeAlias

from pydantic import Field, JsonValue, model_validator

from bench.settings.strict import Strict, validated
from bench.store.atomic import write_atomically
from bench.store.store import digest_of
from methods.framework.errors import ConfigError, PlanError
from methods.framework.inside import LowRank
from methods.framework.inventory import Inventory
from methods.framework.layer_plan import LayerPlan
from methods.framework.outside import an_object, read_json
from methods.framework.plan import Plan

SCHEMA = 1
_REMEDY = "`moebench sweep` writes tables; of many layers and few trials only with `starts: {shapes: false}`"

Sizes: TypeAlias = dict[str, Annotated[int, Field(strict=True)]]
"""Values by quantity, those of ``methods.framework.cost.Cost`` for instance."""
Finite = Annotated[float, Field(allow_inf_nan=False, strict=True)]


class Option(Strict):
    """One setting of a unit.

    Args:
        settings: values of the searched knobs, by name.
        plan: what becomes of the layer. Where several units share a layer: with only this unit's column of ``rank.ranks``.
        sizes: of the unit with this option.
        damage: by how much the objective is worse than the base's when only this unit is changed, to this option; None where
            that has not been measured yet.
    """

    settings: dict[str, JsonValue]
    plan: LayerPlan
    sizes: Sizes
    damage: Finite | None = None


class Unit(Strict):
    """What is decided by itself: a layer, or a matrix of the experts of a layer.

    Args:
        name: ``layer 3``, ``layer 3, gate``.
        layer: index of the decoder layer in the source.
        options: ascending in the table's ``ordered_by``.
    """

    name: str
    layer: Annotated[int, Field(ge=0, strict=True)]
    options: Annotated[tuple[Option, ...], Field(min_length=1)]


class Table(Strict):
    """Units by options, with damages and sizes.

    Args:
        schema_version: of the file.
        study: name of the search that it belongs to.
        model: name of the source, as the user gave it.
        content: digest of the source's content.
        family: of the source.
        objective: what damages are measured in.
        direction: whether a good objective is small or large; damages are positive where it gets worse.
        base: objective of the model of which damages are counted.
        source: sizes of the source, of which budgets are shares.
        rest: sizes of all that no unit decides.
        layers: what becomes of each decoder layer that has no unit.
        units: in the order of the levels of an assignment.
        ordered_by: quantity in which options ascend.
    """

    schema_version: Literal[1] = 1
    study: str
    model: str
    content: str
    family: str
    objective: str
    direction: Literal["minimize", "maximize"] = "minimize"
    base: Finite
    source: Sizes
    rest: Sizes
    layers: tuple[LayerPlan, ...]
    units: Annotated[tuple[Unit, ...], Field(min_length=1)]
    ordered_by: str = "bytes"

    @model_validator(mode="after")
    def _sound(self) -> Self:
        if fault := self._fault():
            raise ValueError(fault)
        return self

    def _fault(self) -> str | None:
        """Return what contradicts itself in the table, or None."""
        quantities = sorted(self.source)
        if self.ordered_by not in quantities:
            return f"ordered_by {self.ordered_by!r} is none of the quantities {quantities}"
        if sorted(self.rest) != quantities:
            return f"rest has the quantities {sorted(self.rest)}, the source {quantities}"
        names = [unit.name for unit in self.units]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            return f"two units are called {twice[0]!r}"
        for unit in self.units:
            if unit.layer >= len(self.layers):
                return f"unit {unit.name!r} is of layer {unit.layer}; there are {len(self.layers)}, counted from 0"
            for option in unit.options:
                if sorted(option.sizes) != quantities:
                    return (
                        f"an option of {unit.name!r} has the quantities {sorted(option.sizes)}, the source {quantities}"
                    )
            sizes = [option.sizes[self.ordered_by] for option in unit.options]
            if sizes != sorted(sizes):
                return f"the options of {unit.name!r} do not ascend in {self.ordered_by}: {sizes}"
        return None

    @property
    def digest(self) -> str:
        """SHA-256 of the table's content, in hexadecimal."""
        return digest_of(self.document())

    @property
    def unscored(self) -> int:
        """Number of options whose damage has not been measured."""
        return sum(option.damage is None for unit in self.units for option in unit.options)

    def chosen(self, levels: Sequence[int]) -> list[Option]:
        """Return the option of each unit.

        Raises:
            ValueError: another number of levels, or a level that does not exist.
        """
        if len(levels) != len(self.units) or any(
            not 0 <= level < len(unit.options) for level, unit in zip(levels, self.units, strict=False)
        ):
            raise ValueError(f"levels {list(levels)} do not fit {len(self.units)} units")
        return [unit.options[level] for unit, level in zip(self.units, levels, strict=True)]

    def sizes(self, levels: Sequence[int]) -> Sizes:
        """Return the sizes of the whole model with these options."""
        chosen = self.chosen(levels)
        return {name: rest + sum(option.sizes[name] for option in chosen) for name, rest in self.rest.items()}

    def predicted(self, damage: float) -> float:
        """Return the objective that is predicted of an assignment of this damage."""
        return self.base + damage if self.direction == "minimize" else self.base - damage

    def plan(self, levels: Sequence[int], inventory: Inventory | None = None) -> Plan:
        """Return the plan with these options.

        Args:
            levels: index of the option of each unit.
            inventory: of the source; where it is given, the plan is normalised and validated.

        Raises:
            PlanError: the options of one layer contradict each other, or the plan does not fit the source.
        """
        stated: dict[int, list[LayerPlan]] = {}
        for unit, option in zip(self.units, self.chosen(levels), strict=True):
            stated.setdefault(unit.layer, []).append(option.plan)
        layers = [merged(stated[index], index) if index in stated else plan for index, plan in enumerate(self.layers)]
        if inventory is not None:
            return Plan(family=self.family, layers=tuple(layers)).normalised(inventory)
        return Plan(family=self.family, layers=tuple(layers))

    def document(self) -> dict[str, Any]:
        """Return the table as JSON values, neutral fields left out."""
        return {**self.model_dump(mode="json", exclude_defaults=True), "schema_version": SCHEMA}


def merged(plans: Sequence[LayerPlan], layer: int) -> LayerPlan:
    """Return one plan of a layer from those of its matrices, each of which states its own column of the ranks.

    Args:
        plans: of the layer's units, alike but for the ranks.
        layer: index, for messages.

    Raises:
        PlanError: they differ in something else, or two state the rank of one matrix.
    """
    first = plans[0]
    if len(plans) == 1:
        return first
    if any(plan.model_copy(update={"rank": None}) != first.model_copy(update={"rank": None}) for plan in plans):
        raise PlanError(f"layer {layer}: its units differ in more than ranks, so there is no one plan of them")
    ranks = [plan.rank for plan in plans if plan.rank is not None]
    if not ranks:
        return first
    if len({(rank.kernel, len(rank.ranks), rank.base is None) for rank in ranks}) > 1 or ranks[0].base is not None:
        raise PlanError(f"layer {layer}: its units factor with different kernels, experts or bases")
    by_expert = zip(*(rank.ranks for rank in ranks), strict=True)
    columns = [[tuple(one[column] for one in expert if one[column]) for column in range(3)] for expert in by_expert]
    if any(len(stated) > 1 for expert in columns for stated in expert):
        raise PlanError(f"layer {layer}: two of its units state the rank of one matrix")
    gate_up_down = [tuple(stated[0] if stated else 0 for stated in expert) for expert in columns]
    rank = LowRank.model_validate({"kernel": ranks[0].kernel, "ranks": gate_up_down})
    return first.model_copy(update={"rank": rank})


def write_table(path: Path, table: Table) -> None:
    """Write ``table`` in one atomic step.

    Raises:
        RecordError: the disk refuses; what was there before is untouched.
    """
    write_atomically(path, json.dumps(table.document(), sort_keys=True, separators=(",", ":"), allow_nan=False))


def read_table(path: Path) -> Table:
    """Read a table.

    Raises:
        ConfigError: the file cannot be read or holds no table of this schema; the message says where and why.
    """
    document = an_object(read_json(path, ConfigError, _REMEDY), str(path), ConfigError, _REMEDY)
    if document.get("schema_version") != SCHEMA:
        raise ConfigError(f"{path} is not a table of schema {SCHEMA}; {_REMEDY}")
    return validated(document, Table, str(path))
