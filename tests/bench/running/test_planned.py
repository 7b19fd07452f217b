"""Plan files as rows of a run: the same result as the method that decided, named after what the file says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bench.checkpoint.checkpoint import Checkpoint
from bench.records.record import CorpusInfo, FoundBy
from bench.records.run_contents import configuration
from bench.running.identity import own_key
from bench.running.planned import Planned
from bench.settings.method_settings import MethodConfig
from bench.settings.recovery import RecoverySettings
from bench.settings.stage_settings import CalibrationConfig, EvaluationConfig
from bench.store.store import digest_of
from methods.framework.errors import PlanError
from methods.framework.inventory import Inventory
from methods.framework.layer_plan import LayerPlan
from methods.framework.plan import Plan
from tests.bench.running.test_run import REAP, config, execute

PROVENANCE: dict[str, Any] = {
    "sweep": "halves",
    "trial": 17,
    "title": "REAP",
    "knobs": {"keep": 0.5},
    "scores": {"nll": 1.25},
    "budget": {"experts": 0.5},
    "a_field_of_a_later_version": [1],
}


@pytest.fixture(scope="module")
def inventory() -> Inventory:
    return Checkpoint.open("pocket-mixtral").inventory


def halves(inventory: Inventory, kept: tuple[int, ...] = (0, 2, 4, 6)) -> Plan:
    return Plan.of(inventory, [LayerPlan(experts=kept) for _ in inventory.layers])


def write(path: Path, plan: Plan, provenance: object = None) -> Path:
    path.write_text(json.dumps(plan.document() | ({} if provenance is None else {"provenance": provenance})))
    return path


@pytest.mark.parametrize(
    ("provenance", "title"),
    [
        (None, "Plan {digest}"),
        ({"method": "reap", "knobs": {}}, "REAP (plan {digest})"),
        ({"method": "of_another_distribution"}, "of_another_distribution (plan {digest})"),
        (PROVENANCE, "REAP (sweep halves, trial 17)"),
        ({"sweep": "halves", "trial": 3}, "Plan {digest} (sweep halves, trial 3)"),
        ({"sweep": "halves", "method": "reap"}, "REAP (sweep halves)"),
    ],
)
def test_the_title_tells_where_a_plan_comes_from(
    provenance: object, title: str, inventory: Inventory, tmp_path: Path
) -> None:
    plan = halves(inventory)
    read = Planned.read(write(tmp_path / "plan.json", plan, provenance), inventory)
    assert (read.decided, read.title) == (plan, title.format(digest=plan.digest[:8]))
    assert (read.found_by is None) == (not isinstance(provenance, dict) or "sweep" not in provenance)


def test_a_plan_is_read_in_its_normal_form(inventory: Inventory, tmp_path: Path) -> None:
    every = Plan(family="mixtral", layers=tuple(LayerPlan(experts=tuple(range(8))) for _ in inventory.layers))
    assert Planned.read(write(tmp_path / "plan.json", every), inventory).decided == Plan.identity(inventory)


@pytest.mark.parametrize(
    ("provenance", "message"),
    [("REAP", "provenance: "), ({"trial": "last"}, "provenance.trial: "), ({"scores": {"nll": []}}, "scores.nll: ")],
)
def test_damaged_provenance_is_named(provenance: object, message: str, inventory: Inventory, tmp_path: Path) -> None:
    with pytest.raises(PlanError, match=message):
        Planned.read(write(tmp_path / "plan.json", halves(inventory), provenance), inventory)


def test_a_plan_gives_what_its_method_gave(inventory: Inventory, tmp_path: Path) -> None:
    _, decided = execute(config(tmp_path, REAP), tmp_path)[0]
    plan = Plan.loads((tmp_path / "plans" / f"{decided.plan}.json").read_bytes())
    path = write(tmp_path / "plan.json", plan, PROVENANCE)
    settings = config(tmp_path, plans=(path,))
    (base, run), seen = execute(settings, tmp_path)
    assert (run.method, run.title, run.status, run.plan) == (
        "plan",
        "REAP (sweep halves, trial 17)",
        "complete",
        decided.plan,
    )
    assert run.found_by == FoundBy(study="halves", trial=17, scores={"nll": 1.25}, budget={"experts": 0.5})
    assert configuration(run)["found_by"]["study"] == "halves" and "found_by" not in configuration(decided)
    assert (run.knobs, run.stages, run.corpus) == ({"keep": 0.5}, ("experts",), None)
    assert (run.scores, run.cost) == (decided.scores, decided.cost) and base.found_by is decided.found_by is None
    assert f"{run.title}: apply" in seen
    assert len(list((tmp_path / "checkpoints").iterdir())) == 1, "the checkpoint is the method's own"
    again, seen = execute(settings, tmp_path)
    assert again == [base, run] and seen == ["base: complete", f"{run.title}: complete"]
    stored = json.loads((tmp_path / "plans" / f"{run.plan}.json").read_text())["provenance"]
    assert Planned.read(write(tmp_path / "stored.json", plan, stored), inventory).title == run.title


def test_what_a_plan_writes_is_measured(tmp_path: Path) -> None:
    gptq = MethodConfig(name="gptq", knobs={"keep": 0.25})
    trained = RecoverySettings(kind="router_kd", sequences=4, length=32, steps=1, batch=4)
    none = EvaluationConfig()
    _, decided = execute(config(tmp_path, gptq, evaluation=none), tmp_path)[0]
    path = tmp_path / "plans" / f"{decided.plan}.json"
    settings = config(tmp_path, plans=(path,), evaluation=none, recovery=trained, target="vllm-cpu")
    _, run = execute(settings, tmp_path)[0]
    assert (run.status, run.reason) == ("complete", None)
    assert run.title == f"GPTQ (plan {str(run.plan)[:8]}) + Router KD" and run.corpus == decided.corpus
    assert run.cold_experts == decided.cold_experts is not None
    assert run.recovery is not None and run.target is not None and run.stages == ("bits",)
    written = [path for path in (tmp_path / "checkpoints").iterdir() if "recovered" not in path.name]
    assert len(written) == 1, "from the same moments"
    sequential = CalibrationConfig(corpus="pocket", sequences=8, length=64, propagation="sequential")
    _, refused = execute(config(tmp_path, plans=(path,), evaluation=none, calibration=sequential), tmp_path)[0]
    assert refused.status == "refused" and "use one_shot" in str(refused.reason)


def test_a_plan_for_another_model_ends_the_run_before_any_work(inventory: Inventory, tmp_path: Path) -> None:
    plan, layers = halves(inventory), len(inventory.layers)
    wrong = {
        "is for family 'olmoe'": plan.model_copy(update={"family": "olmoe"}),
        f"has {layers - 1} layers": plan.model_copy(update={"layers": plan.layers[1:]}),
        "layer 0: .*8": plan.model_copy(update={"layers": (LayerPlan(experts=(1, 9)), *plan.layers[1:])}),
    }
    for message, other in wrong.items():
        path = write(tmp_path / "plan.json", other)
        with pytest.raises(PlanError, match=rf"plan\.json is a plan for another model: .*{message}"):
            execute(config(tmp_path, REAP, plans=(path,)), tmp_path / "store")
    with pytest.raises(PlanError, match=r"cannot read .*absent\.json"):
        execute(config(tmp_path, plans=(tmp_path / "absent.json",)), tmp_path / "store")
    assert not (tmp_path / "store" / "records").exists()


def test_plan_corpus_and_origin_make_the_key(inventory: Inventory, tmp_path: Path) -> None:
    def key(plan: Plan, provenance: object = PROVENANCE, corpus: CorpusInfo | None = None) -> str:
        read = Planned.read(write(tmp_path / "plan.json", plan, provenance), inventory)
        return digest_of(own_key(config(tmp_path), read, None, corpus))

    plan = halves(inventory)
    text = CorpusInfo(name="a", digest="1", tokens=1, sequences=1, propagation="one_shot")
    keys = [
        key(plan),
        key(halves(inventory, (1, 2, 4, 6))),
        key(plan, PROVENANCE | {"trial": 18}),
        key(plan, None),
        key(plan, corpus=text),
        key(plan, corpus=text.model_copy(update={"digest": "2"})),
    ]
    assert len(set(keys)) == len(keys)
    assert key(plan, corpus=text.model_copy(update={"name": "b"})) == keys[4]
