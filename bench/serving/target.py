"""Whether an engine can run what a plan makes, known before any work: from a table of what was tried, else from rules."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any, Final, Literal

from bench.families.compressed_config import PREFIX, QUANTISATION_KEY
from bench.families.family import Family, family_of
from bench.serving.kinds import KINDS, kinds_of
from bench.serving.plugin import STOCK
from methods.framework.errors import PlanError
from methods.framework.forms import has_own_form
from methods.framework.inventory import Inventory
from methods.framework.plan import Plan
from methods.framework.transfer import result

Target = Literal["vllm-cpu", "vllm-gpu", "transformers"]
TARGETS: tuple[Target, ...] = ("vllm-cpu", "vllm-gpu", "transformers")

TABLE = Path(__file__).with_name("capabilities.json")
"""What ``bench.laws.served`` found: for each engine, version and target the outcome of every family and kind."""

SERVED: Final = "served"
DENSE: Final = "dense"
DIFFERS: Final = "differs"
"""Outcomes of a trial; any other text is the reason of a failure."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What is known about a plan on a target.

    Args:
        outcome: ``served`` in the form that is stored; ``dense`` with values or zeros in its place, so that no speed is
            claimed; ``refused``.
        reason: why it is refused, or why it is dense.
        notes: what nobody tried.
    """

    outcome: Literal["served", "dense", "refused"]
    reason: str | None = None
    notes: tuple[str, ...] = ()


def check_target(plan: Plan, inventory: Inventory, target: Target) -> str | None:
    """Return why what ``plan`` makes of ``inventory`` cannot run on ``target``, or None; see ``verdict``."""
    found = verdict(plan, inventory, target)
    return found.reason if found.outcome == "refused" else None


def verdict(plan: Plan, inventory: Inventory, target: Target, table: Path = TABLE) -> Verdict:
    """Return what is known about running what ``plan`` makes of ``inventory`` on ``target``.

    Args:
        plan: any plan that fits.
        inventory: the source.
        target: engine and device.
        table: see ``TABLE``.

    Raises:
        PlanError: the plan does not fit.
    """
    plan = plan.normalised(inventory)
    kinds, family = kinds_of(plan, inventory), family_of(inventory.config)
    try:
        config = family.config_for(inventory.config, plan, result(plan, inventory))
    except PlanError as error:
        return Verdict("refused", str(error))
    if target == "transformers":
        if family.architecture is None:
            return Verdict("refused", f"transformers has no model class for family {family.name}")
        return _by_rules(plan, inventory, target, ())
    if reason := _without_class(config, target):
        return Verdict("refused", reason)
    return _by_table(plan, inventory, family, kinds, target, table)


def _without_class(config: dict[str, Any], target: Target) -> str | None:
    """Return why vLLM has no class for a checkpoint with ``config``, or None."""
    architecture = str((config.get("architectures") or [""])[0])
    if architecture.removeprefix(PREFIX) in STOCK:
        return None
    known = f"the plug-in serves {', '.join(STOCK)}"
    if architecture.startswith(PREFIX):
        return f"the layers of the result differ or store experts in another form, and {known} of that kind"
    if target == "vllm-cpu" and config.get(QUANTISATION_KEY):
        return (
            f"vLLM has no kernel for experts in few bits on a CPU, and values are only loaded by the plug-in: {known}"
        )
    return None


def _by_table(
    plan: Plan, inventory: Inventory, family: Family, kinds: tuple[str, ...], target: Target, table: Path
) -> Verdict:
    engine = installed_engine(target)
    here = f"{target} without an installed engine" if engine is None else f"{engine[0]} {engine[1]} ({target})"
    cells = next(
        (
            one["cells"]
            for one in _tables(table)
            if engine == (one["engine"], one["version"]) and one["target"] == target
        ),
        None,
    )
    if cells is None or family.name not in cells:
        what = "nothing" if cells is None else f"family {family.name}"
        note = f"{what} was tried with {here}: this goes by what the code is made for"
        return _by_rules(plan, inventory, target, (note,))
    outcomes = {kind: cells[family.name].get(kind) for kind in kinds}
    for kind, outcome in outcomes.items():
        if outcome == DIFFERS:
            return Verdict("refused", f"{KINDS[kind]}: {here} gave other tokens than transformers for {family.name}")
        if outcome not in (SERVED, DENSE, None):
            return Verdict("refused", f"{KINDS[kind]}: {here} failed for {family.name}: {outcome}")
    notes = [f"{KINDS[kind]}: not tried with {here}" for kind, outcome in outcomes.items() if outcome is None]
    if len(kinds) > 1 and not notes:
        notes = [f"tried with {here} one by one, not together: {', '.join(kinds)}"]
    return _by_rules(plan, inventory, target, tuple(notes))


def _by_rules(plan: Plan, inventory: Inventory, target: Target, notes: tuple[str, ...]) -> Verdict:
    """Return ``served`` or ``dense`` by what our classes and the stock ones do with each form."""
    forms = [layer.form for layer in result(plan, inventory).layers if layer.form is not None and layer.form.bits]
    if forms and (target != "vllm-gpu" or any(map(has_own_form, forms))):
        return Verdict(DENSE, f"experts in few bits are held as the values they stand for on {target}", notes)
    if any(layer.sparsity is not None for layer in plan.layers):
        return Verdict(DENSE, "zeros among the weights are stored and multiplied like others", notes)
    return Verdict(SERVED, None, notes)


def installed_engine(target: Target) -> tuple[str, str] | None:
    """Return name and version of the installed distribution of vLLM for ``target``, or None."""
    for name in ("vllm-cpu", "vllm") if target == "vllm-cpu" else ("vllm",):
        try:
            return name, metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return None


@cache
def _tables(table: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(table.read_text(encoding="utf-8")) if table.exists() else []
    return found
