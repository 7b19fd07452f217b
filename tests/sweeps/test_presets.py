"""Every recipe that ships is read, configured and composed on the architecture that it names."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.laws.cases import Case, case
from bench.laws.decisions import decide
from bench.running.recipe import Recipe
from bench.settings.method_settings import RecipeConfig
from bench.settings.strict import load_settings
from methods.framework.compose import compose
from methods.framework.plan import Plan
from methods.framework.transfer import result
from sweeps import __file__ as sweeps_file

FILES = sorted((Path(sweeps_file).parent / "presets" / "recipes").glob("*.yaml"))


def composed(recipe: Recipe, here: Case) -> Plan:
    """Return the plan of ``recipe`` from synthetic statistics, as far as one can have it without weights."""
    plan = Plan.identity(here.inventory)
    for step in recipe.steps:
        middle = result(plan, here.inventory)
        own = decide(step.method, here, middle, here.stats.restricted(plan))
        plan = compose(plan, own, here.inventory)
    return plan


@pytest.mark.parametrize("file", FILES, ids=[file.stem for file in FILES])
def test_a_preset_composes_into_one_plan(file: Path) -> None:
    config = load_settings(file, RecipeConfig)
    assert config.source.startswith("arXiv "), "a preset names its paper and table"
    family = "deepseek_v2" if "deepseek" in file.stem else "mixtral"
    here = case(family)
    knobs = [{**step.knobs, "group": 32} if "group" in step.knobs else step.knobs for step in config.steps]
    small = config.model_copy(
        update={"steps": tuple(s.model_copy(update={"knobs": k}) for s, k in zip(config.steps, knobs, strict=True))}
    )
    plan = composed(Recipe.configured(small), here)
    wanted = frozenset().union(*(step.method.stages for step in Recipe.configured(config).steps))
    assert plan.stages == wanted, f"the recipe decides {sorted(plan.stages)}, its steps {sorted(wanted)}"


def test_there_are_presets_for_the_papers() -> None:
    names = {file.stem for file in FILES}
    assert {"holistic-table3-mixtral-l8of32-awq", "holistic-table7-mixtral-l8of32-awq", "moe-i2-mixtral-50"} <= names
