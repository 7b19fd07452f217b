"""Whether an engine can run what a plan makes, known before any work: from a table of what was tried, else from rules."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final, Literal, Protocol

from bench.families.compressed_config import PREFIX, QUANTISATION_KEY
from bench.families.family import Family, family_of
from bench.serving.kinds import KINDS, kinds_of
from bench.serving.plugin import STOCK
from bench.serving.servable import stored_forms
from bench.store.versions import installed
from methods.framework.errors import PlanError
from methods.framework.forms import has_own_form
from methods.framework.inventory import Inventory
from methods.framework.plan import Plan
from methods.framework.transfer import result

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


class Runner(Protocol):
    """What the rules need to know of an engine."""

    name: str
    """As the table calls it."""
    distributions: tuple[str, ...]
    """What it may be installed as; the first one that is found tells its version."""
    few_bits: bool
    """Whether it computes with experts in few bits as they are stored."""


def transformers_verdict(plan: Plan, inventory: Inventory, runner: Runner) -> Verdict:
    """Return what is known about running what ``plan`` makes of ``inventory`` in transformers.

    Args:
        plan: any plan that fits.
        inventory: the source.
        runner: transformers.

    Raises:
        PlanError: the plan does not fit.
    """
    plan, family = plan.normalised(inventory), family_of(inventory.config)
    if isinstance(config := _config(plan, inventory, family), Verdict):
        return config
    if family.architecture is None:
        return Verdict("refused", f"transformers has no model class for family {family.name}")
    return _by_rules(plan, inventory, runner, ())


def vllm_verdict(plan: Plan, inventory: Inventory, runner: Runner, table: Path = TABLE) -> Verdict:
    """Return what is known about running what ``plan`` makes of ``inventory`` in vLLM.

    Args:
        plan: any plan that fits.
        inventory: the source.
        runner: vLLM on a device.
        table: see ``TABLE``.

    Raises:
        PlanError: the plan does not fit.
    """
    plan, family = plan.normalised(inventory), family_of(inventory.config)
    if isinstance(config := _config(plan, inventory, family), Verdict):
        return config
    if reason := _without_class(config, runner):
        return Verdict("refused", reason)
    return _by_table(plan, inventory, family, runner, table)


def _config(plan: Plan, inventory: Inventory, family: Family) -> dict[str, Any] | Verdict:
    """Return the config of the result, or the refusal where none can state it."""
    try:
        return family.config_for(inventory.config, plan, result(plan, inventory))
    except PlanError as error:
        return Verdict("refused", str(error))


def _without_class(config: dict[str, Any], runner: Runner) -> str | None:
    """Return why vLLM has no class for a checkpoint with ``config``, or None."""
    architecture = str((config.get("architectures") or [""])[0])
    if architecture.removeprefix(PREFIX) in STOCK:
        return None
    known = f"the plug-in serves {', '.join(STOCK)}"
    if architecture.startswith(PREFIX):
        return f"the layers of the result differ or store experts in another form, and {known} of that kind"
    if not runner.few_bits and config.get(QUANTISATION_KEY):
        return (
            f"vLLM has no kernel for experts in few bits on a CPU, and values are only loaded by the plug-in: {known}"
        )
    return None


def _by_table(plan: Plan, inventory: Inventory, family: Family, runner: Runner, table: Path) -> Verdict:
    kinds, name, engine = kinds_of(plan, inventory), runner.name, installed_engine(runner)
    here = f"{name} without an installed engine" if engine is None else f"{engine[0]} {engine[1]} ({name})"
    cells = next(
        (one["cells"] for one in _tables(table) if engine == (one["engine"], one["version"]) and one["target"] == name),
        None,
    )
    if cells is None or family.name not in cells:
        what = "nothing" if cells is None else f"family {family.name}"
        note = f"{what} was tried with {here}: this goes by what the code is made for"
        return _by_rules(plan, inventory, runner, (note,))
    outcomes = {kind: cells[family.name].get(kind) for kind in kinds}
    for kind, outcome in outcomes.items():
        if outcome == DIFFERS:
            return Verdict("refused", f"{KINDS[kind]}: {here} gave other tokens than transformers for {family.name}")
        if outcome not in (SERVED, DENSE, None):
            return Verdict("refused", f"{KINDS[kind]}: {here} failed for {family.name}: {outcome}")
    notes = [f"{KINDS[kind]}: not tried with {here}" for kind, outcome in outcomes.items() if outcome is None]
    if len(kinds) > 1 and not notes:
        notes = [f"tried with {here} one by one, not together: {', '.join(kinds)}"]
    if any(layer.linear_bits is not None for layer in result(plan, inventory).layers):
        notes.append(f"few bits of linear layers beside the experts: not tried with {here}")
    if any(form.bits and not form.bits.symmetric for form in stored_forms(result(plan, inventory).layers)):
        notes.append(f"few bits with zero points: not tried with {here}")
    return _by_rules(plan, inventory, runner, tuple(notes))


def _by_rules(plan: Plan, inventory: Inventory, runner: Runner, notes: tuple[str, ...]) -> Verdict:
    """Return ``served`` or ``dense`` by what our classes and the stock ones do with each form."""
    made = result(plan, inventory)
    kept = next((entry.stored.format for entry in made.tensors() if entry.stored is not None), None)
    if kept is not None:
        if runner.name == "transformers":
            return Verdict(DENSE, f"matrices stored as {kept} are held as the values they stand for here", notes)
        notes = (*notes, f"a source stored as {kept}: not tried with {runner.name}")
    forms = [form for form in stored_forms(made.layers) if form.bits]
    if forms and not (runner.few_bits and not any(map(has_own_form, forms))):
        return Verdict(DENSE, f"matrices in few bits are held as the values they stand for on {runner.name}", notes)
    if any(layer.sparsity is not None for layer in plan.layers):
        return Verdict(DENSE, "zeros among the weights are stored and multiplied like others", notes)
    return Verdict(SERVED, None, notes)


def installed_engine(runner: Runner) -> tuple[str, str] | None:
    """Return name and version of the installed distribution of ``runner``, or None."""
    return next(iter(installed(runner.distributions).items()), None)


@cache
def _tables(table: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(table.read_text(encoding="utf-8")) if table.exists() else []
    return found
