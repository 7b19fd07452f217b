"""One test for each error known in public codes of expert selection and merging, which would fail if ours had it.

Where another file tests it already:

* consecutive Block Drop reads the wrong gap: ``test_consecutive_block_drop_picks_the_planted_identities`` (test_methods)
* ties lose groups under a strict threshold: ``test_exactly_the_budget_where_everything_ties`` (test_m_smoe),
  ``test_ties_do_not_change_the_budget_and_every_layer_keeps_one`` (test_mone)
* REAM's groups cannot hold all experts: ``test_groups_that_cannot_hold_all_experts_are_refused`` (test_ream)
* softmax and plain top-k for every family: ``test_route_equals_the_router_module_of_transformers`` (test_routing)
* layers of different size do not load: ``test_a_different_model_generates_saves_and_compresses_further`` (test_load)
* experts that transformers fuses are not found: ``test_a_fused_source_is_written_in_classic_names`` (test_apply)
* an expert without tokens stops the method: ``test_no_method_fails`` (test_planted)
* removed experts stay in the file as zeros or behind a mask: ``bench.laws.realised.cost_is_the_file``
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bench.applying.apply import apply
from bench.calibration.calibrate import calibrate
from bench.calibration.conditions import Effort
from bench.checkpoint.checkpoint import Checkpoint
from bench.laws.cases import case
from bench.text.corpus import Corpus
from methods import registry
from methods.framework.compose import compose
from methods.framework.errors import ConfigError
from methods.framework.inventory import EXPERT_ROLES, ROUTER_ROLES
from methods.framework.knob_space import Choice, space_of
from methods.framework.layer_plan import LayerPlan, Merge
from methods.framework.plan import Plan
from methods.framework.stats import CATALOGUE, Stats
from methods.framework.transfer import result
from methods.kernels.merging import ExpertMatrices, merged, permuted
from tests.support.inventories import toy_inventory
from tests.support.tiny import FAMILIES, tiny_checkpoint, tiny_model, tiny_tokens
from tests.support.token_layers import moments, stats_from

CORPUS = Corpus.of(tiny_tokens(6, 20).tolist(), "random ids")


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Checkpoint]:
    """One tiny checkpoint of each family."""
    folder = tmp_path_factory.mktemp("checkpoints")
    return {family: Checkpoint.open(tiny_checkpoint(family, folder / family)) for family in FAMILIES}


# Framework of the holistic study (UMC)


def test_global_expert_drop_after_layer_drop() -> None:
    """Offsets count the layers whose experts are gone already, so that wrong experts go in all later layers."""
    inventory = toy_inventory(experts=4, moe_layers=3)
    probability = [[9, 9, 9, 9], [1, 50, 60, 2], [70, 3, 4, 80]]
    stats = stats_from(router_probability=probability, moe_residual_cosine=[0.9, 0.1, 0.2])
    dropped = registry.method("layer_drop", keep=2 / 3).plan(inventory, stats)
    assert [layer.drop for layer in dropped.layers] == ["none", "moe", "none", "none"]
    middle = result(dropped, inventory)
    method = registry.method("expert_drop", keep=0.5, scope="global", min_experts=1)
    both = compose(dropped, method.plan(middle, stats.restricted(dropped)), inventory)
    assert [layer.experts for layer in both.layers[2:]] == [(1, 2), (0, 3)]


def _scopes() -> list[tuple[str, str]]:
    """Return every method with each of its scopes."""
    spaces = {name: space_of(registry.method_class(name)).get("scope") for name in registry.names()}
    return [(name, scope) for name, found in spaces.items() if isinstance(found, Choice) for scope in found.values]


@pytest.mark.parametrize(("name", "scope"), _scopes())
def test_nothing_to_drop(name: str, scope: str) -> None:
    """A global ranking indexes a number where nothing is to be dropped; here that is the identity."""
    example = case("mixtral")
    plan = registry.method(name, keep=1.0, scope=scope).plan(example.inventory, example.stats)
    assert plan == Plan.identity(example.inventory)


class _Nothing:
    """Keeps every layer as it is."""

    digest = "nothing"

    def __call__(self, layer: int, stats: Stats) -> LayerPlan:
        return LayerPlan()

    def experts(self, layer: int, plan: LayerPlan, stats: Stats) -> None:
        return None


def test_a_layer_that_keeps_everything_is_still_run(checkpoints: Mapping[str, Checkpoint]) -> None:
    """A layer with nothing to drop is skipped, so that later ones are scored on the states before it."""
    checkpoint, needs = checkpoints["qwen2_moe"], {"gate_norm_moment", "router_probability"}
    once = calibrate(checkpoint, CORPUS, needs)
    sequential = calibrate(checkpoint, CORPUS, needs, decide=_Nothing())
    for name in needs:
        for layer in checkpoint.inventory.moe_layers:
            assert np.array_equal(once.layer(name, layer), sequential.layer(name, layer))


def test_one_score_for_every_family(checkpoints: Mapping[str, Checkpoint]) -> None:
    """Expert Drop scores some families by the full softmax and others by what is left after top-k."""
    for family in ("mixtral", "qwen2_moe", "olmoe", "deepseek_v2"):
        stats = calibrate(checkpoints[family], CORPUS, {"router_probability"})
        for layer in checkpoints[family].inventory.moe_layers:
            assert stats.layer("router_probability", layer).sum() == pytest.approx(CORPUS.tokens)
            assert (stats.layer("router_probability", layer) > 0).all(), "also of experts that no token chose"


# HC-SMoE


@pytest.mark.parametrize("knobs", [{"linkage": "hirarchical"}, {"linkage": "ward"}, {"cluster": "hierarchical"}])
def test_an_unknown_clustering_is_refused(knobs: dict[str, Any]) -> None:
    """A misspelt name runs K-means without a word, and Ward's linkage gets distances that are not squared."""
    with pytest.raises(ConfigError):
        registry.method("hc_smoe", **knobs)


@pytest.mark.parametrize("linkage", ["average", "complete", "single"])
def test_linkage_joins_the_nearest(linkage: str) -> None:
    """``complete`` joins the clusters that are farthest apart."""
    means = np.array([[0.0, 0, 0, 0], [10, 0, 0, 0], [10.5, 0, 0, 0], [30, 0, 0, 0]])
    stats = stats_from(dense_output_mean=[means], gate_norm_moment=[moments([1, 1, 1, 1])])
    inventory = toy_inventory(moe_layers=1)
    (merge,) = registry.method("hc_smoe", keep=0.75, linkage=linkage).plan(inventory, stats).layers[1].merges
    assert merge.members == (1, 2)
    further = registry.method("hc_smoe", keep=0.5, linkage=linkage).plan(inventory, stats).layers[1].merges
    assert [merge.members for merge in further] == [(0, 1, 2)]


# REAP


def test_pruning_runs_each_expert_on_its_own_tokens_only(
    checkpoints: Mapping[str, Checkpoint], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every expert runs on every token, also where only routed tokens count: E / k times the work."""
    from methods.kernels import experts

    rows = []
    stock = experts.gated_mlp

    def counted(x_ND: torch.Tensor, *arguments: Any) -> torch.Tensor:
        rows.append(len(x_ND))
        return stock(x_ND, *arguments)

    patched = 0
    for module in _modules("bench.calibration"):
        if getattr(module, "gated_mlp", None) is stock:
            monkeypatch.setattr(module, "gated_mlp", counted)
            patched += 1
    assert patched, "the pass no longer calls gated_mlp; count its rows where they are now"
    checkpoint = checkpoints["olmoe"]  # no shared experts, no dense layer
    calibrate(checkpoint, CORPUS, registry.method("reap").needs)
    layers = checkpoint.inventory.moe_layers
    assert sum(rows) == CORPUS.tokens * sum(checkpoint.inventory.layers[layer].top_k for layer in layers)


def _modules(package: str) -> list[Any]:
    import importlib
    import pkgutil

    found = importlib.import_module(package)
    modules = pkgutil.walk_packages(found.__path__, f"{package}.")
    return [importlib.import_module(module.name) for module in modules]


@pytest.mark.parametrize("name", registry.names())
def test_every_choice_has_its_statistic(name: str) -> None:
    """Criteria that can be chosen have no recorded statistic."""
    cls = registry.method_class(name)
    choices = {knob: dim.values for knob, dim in space_of(cls).items() if isinstance(dim, Choice)}
    for values in itertools.product(*choices.values()):
        try:
            method = cls.configured(dict(zip(choices, values, strict=True)))
        except ConfigError as refused:
            assert str(refused)  # two settings may exclude each other, but with a reason
            continue
        assert method.needs <= set(CATALOGUE)


def test_tensors_beside_the_router_rows_are_sliced(checkpoints: Mapping[str, Checkpoint], tmp_path: Path) -> None:
    """The truth value of a bias with several elements is asked for, which raises."""
    checkpoint = checkpoints["deepseek_v3"]
    kept = (0, 2, 5, 7)
    layers = [LayerPlan(experts=kept) if layer.mlp == "moe" else LayerPlan() for layer in checkpoint.inventory.layers]
    written = Checkpoint.open(apply(checkpoint, Plan.of(checkpoint.inventory, layers), tmp_path / "out"))
    for index in checkpoint.inventory.moe_layers:
        before = {entry.role: entry for entry in checkpoint.inventory.layers[index].with_role(*ROUTER_ROLES)}
        after = {entry.role: entry for entry in written.inventory.layers[index].with_role(*ROUTER_ROLES)}
        assert before.keys() == after.keys() >= {"router.weight", "router.correction"}
        for role in before:
            assert torch.equal(written.read(after[role]), checkpoint.read(before[role])[list(kept)])


def test_what_the_correction_bias_rules_out_is_unused(tmp_path: Path) -> None:
    """Top-k is taken of the raw logits, so that experts which the correction bias never lets through count as used."""
    model = tiny_model("deepseek_v3", n_group=1, topk_group=1)
    for name, buffer in model.named_buffers():
        if name.endswith("e_score_correction_bias"):
            buffer[3] = -2.0  # a sigmoid is at most 1
    model.save_pretrained(tmp_path / "ruled-out")
    checkpoint = Checkpoint.open(tmp_path / "ruled-out")
    stats = calibrate(checkpoint, CORPUS, {"gate_norm_moment", "token_logits"})
    plan = registry.method("reap", keep=7 / 8).plan(checkpoint.inventory, stats)
    for layer in checkpoint.inventory.moe_layers:
        best = stats.layer("token_logits", layer).argsort(axis=1)[:, -checkpoint.inventory.layers[layer].top_k :]
        assert (best == 3).any(), "by its logits it would be chosen"
        assert stats.layer("gate_norm_moment", layer)[3, 0, 0] == 0
        assert plan.layers[layer].experts == (0, 1, 2, 4, 5, 6, 7)


def test_an_option_that_nothing_reads_is_refused() -> None:
    """A guard for super experts is set under one name and read under another, so that it never acts."""
    with pytest.raises(ConfigError, match="singleton_super_experts"):
        registry.method("reap", singleton_super_experts=True)


def test_cka_is_not_the_cosine_of_centred_vectors(tmp_path: Path) -> None:
    """``cka_distance`` is a cosine; CKA does not change when one side is rotated, a cosine does."""
    model = tiny_model("olmoe")
    generator = torch.Generator().manual_seed(0)
    rotation, _ = torch.linalg.qr(torch.randn(64, 64, generator=generator, dtype=torch.float64))
    with torch.no_grad():
        for layer in model.model.layers:
            experts = layer.mlp.experts
            experts.gate_up_proj[1] = experts.gate_up_proj[0]
            experts.down_proj[1] = rotation.float() @ experts.down_proj[0]
    model.save_pretrained(tmp_path / "rotated")
    checkpoint = Checkpoint.open(tmp_path / "rotated")
    stats = calibrate(checkpoint, CORPUS, {"output_cka", "output_cosine"})
    for layer in checkpoint.inventory.moe_layers:
        assert stats.layer("output_cka", layer)[0, 1] == pytest.approx(1.0, abs=1e-5)
        assert abs(stats.layer("output_cosine", layer)[0, 1]) < 0.5
        assert stats.layer("output_cka", layer)[0, 2] < 0.99


def _experts(count: int, seed: int = 0) -> list[ExpertMatrices]:
    generator = torch.Generator().manual_seed(seed)
    shapes = ((6, 8), (6, 8), (8, 6))
    return [
        ExpertMatrices(*(torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes))
        for _ in range(count)
    ]


@pytest.mark.parametrize("rank", [3, 6])
def test_the_joint_decomposition_is_split_by_member(rank: int) -> None:
    """``submoe`` reshapes V^T (k x n W) to (n, k, W), which scrambles the members' blocks; Sub-MoE's formula by numpy."""
    members, weights = _experts(3), (0.5, 0.2, 0.3)
    found = merged(Merge(into=0, members=(0, 1, 2), weights=weights, kernel="svd", rank=rank), members)
    for place, matrix in enumerate(found):
        parts = [member[place].numpy() for member in members]
        left, values, right = np.linalg.svd(np.hstack(parts), full_matrices=False)
        blocks = np.split(right[:rank], len(parts), axis=1)
        expected = left[:, :rank] * values[:rank] @ sum(w * block for w, block in zip(weights, blocks, strict=True))
        assert np.allclose(matrix.numpy(), expected)
        scrambled = right[:rank].reshape(len(parts), rank, -1)
        wrong = left[:, :rank] * values[:rank] @ sum(w * block for w, block in zip(weights, scrambled, strict=True))
        assert not np.allclose(matrix.numpy(), wrong)


MERGING = ("m_smoe", "ream", "hc_smoe", "sub_moe", "cka_merge")


@pytest.mark.parametrize("name", MERGING)
def test_a_merged_expert_is_stored_once(name: str, checkpoints: Mapping[str, Checkpoint], tmp_path: Path) -> None:
    """Merged experts are copied into the place of every member, so that the checkpoint is as large as before."""
    checkpoint = checkpoints["qwen3_moe"]
    method = registry.method(name, keep=0.5)
    stats = calibrate(checkpoint, CORPUS, method.needs)
    plan = method.plan(checkpoint.inventory, stats)
    folder = apply(checkpoint, plan, tmp_path / "out", moments=stats)
    written = Checkpoint.open(folder).inventory
    assert written.num_experts == checkpoint.inventory.num_experts // 2
    matrices = [entry for layer in written.layers for entry in layer.with_role(*EXPERT_ROLES)]
    assert len(matrices) == 3 * written.num_experts
    contents = {Checkpoint.open(folder).read(entry).numpy().tobytes() for entry in matrices}
    assert len(contents) == len(matrices), "two stored matrices are the same"
    shed = sum(f.stat().st_size for f in checkpoint.path.glob("*.safetensors"))
    shed -= sum(f.stat().st_size for f in folder.glob("*.safetensors"))
    before = sum(e.nbytes for layer in checkpoint.inventory.layers for e in layer.with_role(*EXPERT_ROLES))
    assert shed > 0.49 * before, "half of the experts' bytes are gone from the disk"


# EASY-EP


def test_the_pruned_router_needs_no_mask() -> None:
    """The pruned checkpoint keeps a router row for every expert, and numbers of one model are written into the code."""
    for experts, keep in ((8, 0.5), (12, 0.75)):
        inventory = toy_inventory(experts=experts)
        stats = stats_from(residual_gate_norm=[np.arange(experts)] * 2)
        after = result(registry.method("easy_ep", keep=keep).plan(inventory, stats), inventory)
        for index in inventory.moe_layers:
            (router,) = after.layers[index].with_role("router.weight")
            assert router.shape[0] == after.layers[index].experts == experts * keep


# MoNE, and the M-SMoE of its repository


def _halves(seed: int) -> tuple[Corpus, Corpus]:
    """Return a corpus and the same with its windows in the other order."""
    windows = tiny_tokens(8, 16, seed=seed).tolist()
    return Corpus.of(windows, "there"), Corpus.of(windows[::-1], "back")


@pytest.mark.parametrize("name", ["m_smoe", "mone", "ream"])
def test_batches_and_their_order_do_not_matter(name: str, checkpoints: Mapping[str, Checkpoint]) -> None:
    """Frequencies are normalised at every batch so that the last ones dominate, similarities are those of the last batch,
    the variance leaves out the first batch and measures from a running mean, saliencies are means of batch means."""
    checkpoint, method = checkpoints["qwen2_moe"], registry.method(name, keep=0.5)
    there, back = _halves(4)
    whole = calibrate(checkpoint, there, method.needs)
    others = [
        calibrate(checkpoint, back, method.needs),
        calibrate(checkpoint, there, method.needs, effort=Effort(batch_tokens=16, expert_rows=5, hidden_bytes=2**14)),
    ]
    plans = []
    for stats in (whole, *others):
        for need in method.needs:
            for layer in checkpoint.inventory.moe_layers:
                scale = np.abs(whole.layer(need, layer)).max()
                assert stats.layer(need, layer) == pytest.approx(whole.layer(need, layer), rel=1e-4, abs=1e-4 * scale)
        plans.append(method.plan(checkpoint.inventory, stats))
    for plan in plans[1:]:
        for one, other in zip(plans[0].layers, plan.layers, strict=True):
            assert (one.experts, one.constants) == (other.experts, other.constants)
            assert [merge.members for merge in one.merges] == [merge.members for merge in other.merges]


def test_similarity_has_no_empty_triangle() -> None:
    """Only the upper triangle is filled, so that an expert has similarity 0 with every dominant expert before it."""
    columns = np.array([[1.0, 0.0], [0.1, 1.0], [0.0, 1.0], [0.0, 1.0]])
    stats = stats_from(gate_norm_moment=[moments([9, 8, 2, 1])], logit_gram=[columns @ columns.T])
    layer = registry.method("m_smoe", keep=0.5).plan(toy_inventory(moe_layers=1), stats).layers[1]
    assert [merge.members for merge in layer.merges] == [(1, 2, 3)], "with zeros below the diagonal they would join 0"


def test_similarity_is_of_logits_and_not_of_their_sigmoid() -> None:
    """Columns of sigmoids are all positive, hence alike whatever the logits are."""
    logits = np.array([[4.0, -4.0, -5.0], [-4.0, 4.0, 5.0], [4.0, -4.0, -1.0], [4.0, 4.0, -2.0]])  # tokens, experts
    logits = np.hstack([logits, np.array([[-4.0], [4.0], [-3.0], [4.5]])])
    gram = logits.T @ logits
    stats = stats_from(gate_norm_moment=[moments([9, 8, 2, 1])], logit_gram=[gram])
    layer = registry.method("m_smoe", keep=0.5).plan(toy_inventory(moe_layers=1), stats).layers[1]
    unit = logits / np.linalg.norm(logits, axis=0)
    nearest = [int(np.argmax(unit[:, expert] @ unit[:, :2])) for expert in (2, 3)]
    groups = {merge.into: merge.members for merge in layer.merges}
    assert all(expert in groups[core] for expert, core in zip((2, 3), nearest, strict=True))


def test_the_most_used_expert_weighs_what_it_is_used() -> None:
    """The frequency of a layer's most used expert is set to 1 to protect it, and that copy becomes its merge weight."""
    stats = stats_from(gate_norm_moment=[moments([4, 3, 2, 1])], logit_gram=[np.ones((4, 4))])
    (merge,) = registry.method("m_smoe", keep=0.25).plan(toy_inventory(moe_layers=1), stats).layers[1].merges
    assert merge.weights == pytest.approx((0.4, 0.3, 0.2, 0.1))


def test_alignment_is_to_the_dominant_expert() -> None:
    """All experts are aligned to expert 0, whichever they are merged into."""
    first, other = _experts(2)
    order = torch.tensor([3, 1, 5, 0, 4, 2])
    members = [first, permuted(other, order), other]
    merge = Merge(into=2, members=(0, 1, 2), weights=(0.0, 0.5, 0.5), kernel="aligned")
    for found, expected in zip(merged(merge, members), other, strict=True):
        assert torch.allclose(found, expected), "the two are one function, so in the order of `into` nothing changes"
    stats = stats_from(gate_norm_moment=[moments([1, 3, 9, 2])], logit_gram=[np.ones((4, 4))])
    (merge,) = registry.method("m_smoe", keep=0.25).plan(toy_inventory(moe_layers=1), stats).layers[1].merges
    assert merge.into == 2


# ShortGPT, and the memory of M-SMoE


def test_no_statistic_grows_with_the_square_of_tokens() -> None:
    """A cosine is the diagonal of a tokens x tokens matrix; all router logits are stacked. Sampled tokens are bounded."""
    for spec in CATALOGUE.values():
        assert spec.dims.count("S") <= 1 and "T" not in spec.dims
    for name in ("m_smoe", "ream", "mone", "easy_ep", "block_drop", "layer_drop"):
        method = registry.method(name)
        assert not any("S" in CATALOGUE[need].dims for need in method.needs)
