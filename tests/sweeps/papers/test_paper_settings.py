"""What the rows of the papers claim against what is really run: scopes, zero points, orders, and sizes in closed form."""

from __future__ import annotations

from typing import Any

import pytest

from bench.checkpoint.checkpoint import Checkpoint
from bench.families.family import families, family_of
from bench.settings.method_settings import MethodConfig, RecipeConfig
from methods.framework.cost import cost, cost_of
from methods.framework.inside import LowRank
from methods.framework.layer_plan import LayerPlan
from methods.framework.plan import Plan
from methods.framework.stats import Stats
from sweeps.papers.asked import Asked, asked
from sweeps.papers.shelf import paper_names, read_paper
from sweeps.papers.stand_in import StandIn, conditions, stand_ins
from tests.methods.framework.test_cost import DEEPSEEK, MIXTRAL

HOLISTIC, MOE_I2 = read_paper("holistic"), read_paper("moe_i2")
# config.json of deepseek-ai/DeepSeek-V2-Lite
V2_LITE: dict[str, Any] = {
    **DEEPSEEK,
    "model_type": "deepseek_v2",
    "num_hidden_layers": 27,
    "kv_lora_rank": 512,
    "q_lora_rank": None,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "v_head_dim": 128,
    "n_group": 1,
    "topk_group": 1,
    "topk_method": "greedy",
    "routed_scaling_factor": 1.0,
}
CONFIGS = {"mixtral": MIXTRAL, "deepseek": DEEPSEEK}


def rows(name: str, key: str) -> list[Asked]:
    exhibit = HOLISTIC.exhibit(name)
    one = StandIn(key, HOLISTIC.file.models[key], "theirs", False)
    return asked(HOLISTIC.file, exhibit, one, conditions(HOLISTIC, exhibit, False, {}))


def slimming(row: Asked) -> list[MethodConfig]:
    """Return the steps of a row that make zeros or few bits."""
    found = row.compression
    steps = found.steps if isinstance(found, RecipeConfig) else (found,) if found is not None else ()
    made = [MethodConfig(name=step.name, knobs=step.knobs) for step in steps]
    return [step for step in made if step.name in ("awq", "gptq", "wanda", "sparsegpt")]


@pytest.mark.parametrize(("name", "count"), [("table-3", 4), ("table-5", 4), ("table-6", 2), ("table-7", 6)])
@pytest.mark.parametrize("key", ["mixtral", "deepseek"])
def test_slimming_reaches_all_linear_layers(name: str, count: int, key: str) -> None:
    inventory = Checkpoint.open(f"pocket-{key}").inventory
    steps = [step for row in rows(name, key) for step in slimming(row)]
    assert len(steps) == count
    for step in steps:
        own = {**step.knobs, "group": 32} if "group" in step.knobs else step.knobs
        plan = MethodConfig(name=step.name, knobs=own).configured().plan(inventory, Stats({}))
        for layer in plan.layers:
            stated = layer.bits or layer.sparsity
            assert stated is not None and stated.scope == "all", (name, step)
            if layer.bits is not None:
                assert layer.bits.symmetric == (step.name == "gptq") and layer.bits.act_order == (step.name == "gptq")
                assert step.knobs["group"] == (128 if key == "mixtral" else 64)


def test_shared_experts_are_left_alone_where_the_study_leaves_them() -> None:
    steps = [step.configured() for row in rows("table-8", "deepseek") for step in slimming(row)]
    assert len(steps) == 4 and {step.knobs["scope"] for step in steps} == {"experts"}


def test_each_row_reads_the_text_of_the_study() -> None:
    read = {row.label: row.calibration.corpus for row in rows("table-6", "mixtral")}
    assert "c4" in read["Baseline"] and "alpaca" in read["GPTQ"] and "pile" in read["AWQ"]
    exhibit = HOLISTIC.exhibit("table-6")
    small = stand_ins(HOLISTIC.file, exhibit, "pocket", None, None)[0]
    here = {row.label: row for row in asked(HOLISTIC.file, exhibit, small, conditions(HOLISTIC, exhibit, True, {}))}
    assert here["GPTQ"].calibration.corpus == "pocket" and "alpaca" in here["GPTQ"].departs[0]


def halved(config: dict[str, Any], experts: int, rank: int) -> tuple[float, float, float]:
    """Return GiB, and the shares of routed and of all weights that are gone, where experts go and the others are factored."""
    inventory = family_of(config).inventory(config)
    inside = LayerPlan(experts=tuple(range(experts)), rank=LowRank(kernel="whitened", ranks=((rank,) * 3,) * experts))
    plan = Plan.of(inventory, [inside if layer.mlp == "moe" else LayerPlan() for layer in inventory.layers])
    before, after = cost_of(inventory), cost(plan, inventory)
    routed = 1 - after.routed_parameters / before.routed_parameters
    return after.bytes / 2**30, routed, 1 - after.parameters / before.parameters


def test_the_headline_of_moe_i2_follows_from_a_quarter_of_the_experts_and_its_mean_ranks() -> None:
    ranks = {key: int(MOE_I2.file.models[key].words["rank"]) for key in ("mixtral", "deepseek")}
    size, routed, total = halved(MIXTRAL, 6, ranks["mixtral"])
    router = 32 * 2 * 4096 * 2 / 2**30  # rows of the experts that are gone, which the closed form leaves in
    assert size + router == pytest.approx(43.491, abs=5e-4) and round(size, 2) == 43.49, "43.49 GB printed"
    assert routed == pytest.approx(0.5179, abs=5e-5) and round(total, 3) == 0.5, "about 50 % printed"
    size, routed, total = halved(V2_LITE, 48, ranks["deepseek"])
    assert routed == pytest.approx(0.53977, abs=5e-6), "53.98 % printed"
    assert (size, total) == pytest.approx((14.78, 0.4947), abs=5e-3), "15.03 GB printed"
    assert 43.2 < halved(MIXTRAL, 6, 2040)[0] < 43.4 and halved(MIXTRAL, 6, 2056)[0] > 43.6, "the next ranks miss"


def test_the_share_that_stage_two_keeps_is_that_of_the_mean_rank() -> None:
    for key, wide, high in (("mixtral", 14336, 4096), ("deepseek", 1408, 2048), ("qwen", 1408, 2048)):
        words = MOE_I2.file.models[key].words
        assert float(words["kept"]) == pytest.approx(int(words["rank"]) * (wide + high) / (wide * high), abs=5e-5)


def test_models_are_read_by_a_family_that_is_known() -> None:
    for paper in map(read_paper, paper_names()):
        for model in paper.file.models.values():
            assert set(model.families) <= {*families(), "mistral"}, model.title
    assert family_of(DEEPSEEK).name in HOLISTIC.file.models["deepseek"].families
    for key, config in CONFIGS.items():
        parameters = cost_of(family_of(config).inventory(config))
        stated = HOLISTIC.file.models[key]
        assert round(parameters.parameters / 1e9, 1) == stated.parameters
        assert round(parameters.active_parameters / 1e9, 1) == stated.active
    words = HOLISTIC.file.models["deepseek"].words
    assert (words["layers"], words["blocks"], words["experts"]) == (27, 28, 64)
