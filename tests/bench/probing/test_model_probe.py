"""The probe of a real model against transformers with masks."""

from __future__ import annotations

import copy
import json
from functools import cache
from itertools import product

import numpy as np
import pytest
import torch

from bench.applying.apply import apply
from bench.checkpoint.checkpoint import Checkpoint
from bench.models.load import load_model
from bench.probing import model_probe as probe_module
from bench.probing.model_probe import ModelProbe
from bench.text.corpus import Corpus
from methods.framework.errors import ConfigError, PlanError, RefusedError, StatsError
from methods.framework.layer_plan import LayerPlan, Merge
from methods.framework.plan import Plan
from methods.kernels.routing import route
from tests.support.masking import mask
from tests.support.tiny import FAMILIES, tiny_checkpoint, tiny_tokens

RAGGED = Corpus.of([w[:n] for w, n in zip(tiny_tokens(5).tolist(), (24, 7, 24, 1, 7), strict=True)], "ragged")
SQUARE = Corpus.of(tiny_tokens().tolist(), "square")
HALVES = (LayerPlan(), LayerPlan(experts=(0, 2, 3, 5, 6, 7)), LayerPlan(experts=(1, 2, 4, 7), top_k=1))
EXACT = {"dtype": "float64"}


@pytest.fixture(scope="module", params=FAMILIES)
def any_checkpoint(request, tmp_path_factory):
    return Checkpoint.open(tiny_checkpoint(request.param, tmp_path_factory.mktemp(request.param)))


@pytest.fixture(scope="module")
def qwen(tmp_path_factory):
    return Checkpoint.open(tiny_checkpoint("qwen3_moe", tmp_path_factory.mktemp("qwen3_moe"), num_hidden_layers=4))


def plain(checkpoint):
    return copy.deepcopy(_loaded(checkpoint.path))


@cache
def _loaded(path):
    return load_model(path, dtype=torch.float64, experts_implementation="eager")


def seen(checkpoint, plans):
    """Return what one transformers forward shows with ``plans`` masked: per layer, experts' input, output and states."""
    changed = {layer: plan for layer, plan in plans.items() if plan != LayerPlan()}
    return _seen(checkpoint.path, tuple(sorted(changed.items(), key=lambda item: item[0])))


@cache
def _seen(path, changed):
    checkpoint, plans = Checkpoint.open(path), dict(changed)
    model = plain(checkpoint)
    found = {}

    def record(layer, kind):
        def hook(module, arguments, output):
            found.setdefault((layer, kind), []).append(output.flatten(0, -2))
            found.setdefault((layer, kind, "input"), []).append(arguments[0].flatten(0, -2))

        return hook

    for index, layer in enumerate(model.model.layers):
        layer.register_forward_hook(record(index, "states"))
        if hasattr(layer.mlp, "experts"):
            layer.mlp.experts.register_forward_hook(record(index, "routed"))
    whole = [plans.get(index, LayerPlan()) for index in range(len(checkpoint.inventory.layers))]
    masked = mask(model, Plan.of(checkpoint.inventory, whole))
    for window in sorted(RAGGED.windows, key=len):
        with torch.no_grad():
            masked(input_ids=torch.tensor([window]), use_cache=False)
    return {key: torch.cat(parts) for key, parts in found.items()}


def gram_error(view, experts, checkpoint, layer):
    """Return the root of the Gram loss of keeping ``experts``, token by token and term by term."""
    top_k = min(checkpoint.inventory.layers[layer].top_k, len(experts))
    correction = None
    if checkpoint.inventory.router.correction_bias:
        (entry,) = checkpoint.inventory.layers[layer].with_role("router.correction")
        correction = checkpoint.read(entry).double()[list(experts)]
    routing = route(torch.from_numpy(view.logits_SE[:, list(experts)]), checkpoint.inventory.router, top_k, correction)
    total = 0.0
    for token, (chosen_K, weights_K) in enumerate(zip(routing.indices_TK, routing.weights_TK, strict=True)):
        terms = [(len(view.gram_SXX[token]) - 1, -1.0)]
        terms += [(experts[int(c)], float(w)) for c, w in zip(chosen_K, weights_K, strict=True)]
        total += sum(a * b * view.gram_SXX[token, i, j] for (i, a), (j, b) in product(terms, terms))
    return np.sqrt(max(total, 0.0))


def test_layer_error_is_that_of_the_masked_model(any_checkpoint):
    probe = ModelProbe(any_checkpoint, RAGGED, **EXACT)
    original = seen(any_checkpoint, {})
    for decided in ({}, {1: HALVES[1]}):
        expected = [
            float((seen(any_checkpoint, {**decided, 2: plan})[2, "routed"] - original[2, "routed"]).norm())
            for plan in HALVES
        ]
        np.testing.assert_allclose(probe.layer_error(2, HALVES, decided), expected, rtol=1e-6, atol=1e-10)
    assert probe.layer_error(2, [LayerPlan(drop="moe")], {})[0] == pytest.approx(float(original[2, "routed"].norm()))


def test_noise_error_is_that_of_the_masked_layer_on_standard_normal_inputs(any_checkpoint):
    probe = ModelProbe(any_checkpoint, RAGGED, **EXACT)
    drawn = torch.randn((RAGGED.tokens, any_checkpoint.inventory.hidden), generator=torch.Generator().manual_seed(2))

    def routed(plan):
        layers = [LayerPlan()] * len(any_checkpoint.inventory.layers)
        layers[2] = plan
        block = mask(plain(any_checkpoint), Plan.of(any_checkpoint.inventory, layers)).model.layers[2].mlp
        found = []
        block.experts.register_forward_hook(lambda module, arguments, output: found.append(output.flatten(0, -2)))
        with torch.no_grad():
            block(drawn[None].double())
        return found[0]

    expected = [float((routed(plan) - routed(LayerPlan())).norm()) for plan in HALVES]
    np.testing.assert_allclose(probe.noise_error(2, HALVES), expected, rtol=1e-6, atol=1e-10)
    assert np.abs(drawn.std() - 1.0) < 0.05
    assert abs(expected[2] - probe.layer_error(2, HALVES, {})[2]) > 1e-3 * expected[2]


def test_inner_products_hold_the_biases_of_experts():
    checkpoint = Checkpoint.open(tiny_checkpoint("gpt_oss"))
    assert checkpoint.inventory.layers[1].biased
    view = ModelProbe(checkpoint, RAGGED, **EXACT).layer_view(1, {})
    whole = np.sqrt(view.gram_SXX[:, -1, -1].sum())
    # What all experts make together is the target, so nothing is missing where none is removed.
    assert gram_error(view, range(checkpoint.inventory.layers[1].experts), checkpoint, 1) < 1e-6 * whole


@pytest.mark.parametrize("router", ["slice", "mean", "map"])
def test_merged_candidates_are_run_as_they_are_written(qwen, tmp_path, router):
    merge = Merge(into=1, members=(1, 3, 6), weights=(0.5, 0.2, 0.3), kernel="aligned")
    plan = LayerPlan(experts=(0, 1, 2, 4, 5, 7), merges=(merge,), router=router)
    whole = Plan.of(qwen.inventory, [LayerPlan(), LayerPlan(), plan, LayerPlan()])
    written = seen(Checkpoint.open(apply(qwen, whole, tmp_path / router)), {})
    original = seen(qwen, {})
    probe = ModelProbe(qwen, RAGGED, **EXACT)
    change = written[2, "states"] - original[2, "states"]
    assert probe.block_error([2], [[plan]], {})[0] == pytest.approx(float(change.norm()), rel=1e-6)
    # There are no shared experts here, so the routed output is all that changes.
    assert probe.layer_error(2, [plan], {})[0] == pytest.approx(float(change.norm()), rel=1e-6)


def test_block_error_is_that_of_every_path_of_the_masked_model(any_checkpoint):
    probe = ModelProbe(any_checkpoint, RAGGED, **EXACT)
    options = [HALVES, HALVES[:2]]
    goal = seen(any_checkpoint, {})[2, "states"]
    for decided in ({}, {0: HALVES[1] if 0 in any_checkpoint.inventory.moe_layers else LayerPlan()}):
        expected = [
            float((seen(any_checkpoint, {**decided, 1: one, 2: two})[2, "states"] - goal).norm())
            for one, two in product(*options)
        ]
        found = probe.block_error([1, 2], options, decided)
        assert found.shape == (3, 2)
        np.testing.assert_allclose(found.ravel(), expected, rtol=1e-6, atol=1e-10)


def test_block_error_of_dropped_layers(any_checkpoint):
    probe = ModelProbe(any_checkpoint, RAGGED, **EXACT)
    original = seen(any_checkpoint, {})
    errors = probe.block_error([2], [[LayerPlan(drop="block"), LayerPlan(drop="moe")]], {})
    goal = original[2, "states"]
    dropped = seen(any_checkpoint, {2: LayerPlan(drop="moe")})[2, "states"]
    assert errors[0] == pytest.approx(float((original[1, "states"] - goal).norm()), rel=1e-6)
    assert errors[1] == pytest.approx(float((dropped - goal).norm()), rel=1e-6)


@pytest.mark.parametrize("settings", [EXACT, {"dtype": "float32"}], ids=["float64", "float32"])
def test_layer_view_gives_the_errors_that_running_gives(any_checkpoint, settings):
    probe = ModelProbe(any_checkpoint, RAGGED, **settings)
    rng = np.random.default_rng(0)
    groups = any_checkpoint.inventory.router.groups
    for decided in ({}, {1: HALVES[1]}):
        view = probe.layer_view(2, decided)
        subsets = []
        for _ in range(4):
            picked = [group * 8 // groups + rng.permutation(8 // groups)[: 4 // groups] for group in range(groups)]
            subsets.append(tuple(sorted(int(e) for e in np.concatenate(picked))))
        run = probe.layer_error(2, [LayerPlan(experts=subset) for subset in subsets], decided)
        gram = [gram_error(view, subset, any_checkpoint, 2) for subset in subsets]
        np.testing.assert_allclose(gram, run, rtol=1e-9 if settings == EXACT else 1e-4)


def test_layer_view_is_made_of_the_experts_outputs(any_checkpoint):
    decided = {1: HALVES[1]}
    view = ModelProbe(any_checkpoint, RAGGED, **EXACT).layer_view(2, decided)
    experts = plain(any_checkpoint).model.layers[2].mlp.experts
    input_TD = seen(any_checkpoint, decided)[2, "routed", "input"]
    with torch.no_grad():
        outputs = []
        for gate_up, down in zip(experts.gate_up_proj, experts.down_proj, strict=True):
            gate, up = (input_TD @ gate_up.T).chunk(2, dim=-1)
            outputs.append((torch.nn.functional.silu(gate) * up) @ down.T)
        outputs.append(seen(any_checkpoint, {})[2, "routed"])
        expected = torch.einsum("itd,jtd->tij", torch.stack(outputs), torch.stack(outputs))
    assert view.gram_SXX.shape == (RAGGED.tokens, 9, 9) and view.logits_SE.shape == (RAGGED.tokens, 8)
    np.testing.assert_allclose(view.gram_SXX, expected.numpy(), rtol=1e-6, atol=1e-6 * float(expected.max()))


def masks_of(checkpoint, seed=0):
    rng = np.random.default_rng(seed)
    return {layer: rng.uniform(0.5, 1.5, 8) for layer in checkpoint.inventory.moe_layers}


def test_mask_gradient_is_the_slope_of_the_loss(any_checkpoint):
    probe = ModelProbe(any_checkpoint, RAGGED, **EXACT)
    masks = masks_of(any_checkpoint)
    _, gradient = probe.mask_gradient(masks, 0)
    assert sorted(gradient) == sorted(masks)
    largest = max(np.abs(slope).max() for slope in gradient.values())
    for layer, expert in product(masks, range(0, 8, 3)):
        ends = []
        for step in (1e-4, -1e-4):
            moved = {index: mask_E.copy() for index, mask_E in masks.items()}
            moved[layer][expert] += step
            ends.append(probe.mask_gradient(moved, 0)[0])
        # Transformers' routers round their scores to float32, so the step cannot be much smaller.
        assert gradient[layer][expert] == pytest.approx((ends[0] - ends[1]) / 2e-4, rel=1e-3, abs=1e-3 * largest)


def test_mask_gradient_loss_is_that_of_scaled_experts(any_checkpoint):
    masks = masks_of(any_checkpoint)
    found = ModelProbe(any_checkpoint, RAGGED, **EXACT, distill=0.3, mask_batch_tokens=32).mask_gradient(masks, 4)[0]
    windows = [window for window in RAGGED.windows if len(window) > 1][::2]  # step 4 takes the first of two batches
    original, scaled = (plain(any_checkpoint) for _ in range(2))
    entropy = targets = distance = 0.0
    with torch.no_grad():
        for layer, mask_E in masks.items():
            scaled.model.layers[layer].mlp.experts.down_proj *= torch.from_numpy(mask_E)[:, None, None]
        for window in windows:
            ids = torch.tensor([window])
            output = scaled(input_ids=ids, labels=ids, use_cache=False, output_hidden_states=True)
            entropy += float(output.loss) * (len(window) - 1)
            targets += len(window) - 1
            before = original(input_ids=ids, use_cache=False, output_hidden_states=True)
            distance += float((output.hidden_states[-1] - before.hidden_states[-1]).square().sum())
    assert found == pytest.approx(entropy / targets + 0.3 * distance**0.5, rel=1e-6)


def test_mask_gradient_of_ones_has_no_distance(qwen):
    ones = {layer: np.ones(8) for layer in qwen.inventory.moe_layers}
    plain, slopes = ModelProbe(qwen, SQUARE, **EXACT, distill=0.0).mask_gradient(ones, 0)
    loss, gradient = ModelProbe(qwen, SQUARE, **EXACT).mask_gradient(ones, 0)
    assert loss == pytest.approx(plain, rel=1e-12)
    np.testing.assert_allclose(gradient[1], slopes[1], rtol=1e-12)
    assert any(np.abs(slope).max() > 0 for slope in gradient.values())


def test_a_block_takes_as_many_runs_as_its_tree_has_nodes(qwen):
    probe = ModelProbe(qwen, SQUARE)
    probe.block_error([3], [[LayerPlan()]], {})  # the original states
    before = probe.runs
    probe.block_error([1, 2, 3], [HALVES] * 3, {})
    assert probe.runs - before == 3 + 9 + 27


def test_layer_by_layer_runs_each_layer_once(qwen):
    probe = ModelProbe(qwen, SQUARE)
    decided = {}
    for layer in qwen.inventory.moe_layers:
        probe.layer_error(layer, [HALVES[1]], decided)
        decided[layer] = HALVES[1]
    depth = len(qwen.inventory.layers)
    # Original states up to the last layer, one target and one candidate in each, one decided run of all but the last.
    assert probe.runs == (depth - 1) + 2 * depth + (depth - 1)


def test_states_forgotten_for_want_of_room_and_a_scratch_file_change_nothing(qwen, tmp_path):
    roomy = ModelProbe(qwen, RAGGED, **EXACT)
    cramped = ModelProbe(qwen, RAGGED, hidden_bytes=1, scratch=tmp_path, **EXACT)
    decided = {0: HALVES[1], 1: HALVES[2]}
    for probe in (roomy, cramped):
        probe.layer_view(0, {})
    np.testing.assert_array_equal(
        roomy.block_error([2, 3], [HALVES, HALVES], decided), cramped.block_error([2, 3], [HALVES, HALVES], decided)
    )
    views = [probe.layer_view(3, decided).gram_SXX for probe in (roomy, cramped)]
    np.testing.assert_allclose(views[0], views[1], rtol=1e-9, atol=1e-9)


def test_equal_questions_run_once(qwen, tmp_path, monkeypatch):
    def ask(probe):
        everything = LayerPlan(experts=tuple(range(8)))  # the same as no plan
        view = probe.layer_view(1, {0: everything})
        loss, gradient = probe.mask_gradient(masks_of(qwen), 2)
        return [
            view.gram_SXX,
            view.logits_SE,
            probe.layer_error(1, [HALVES[1], everything, HALVES[1]], {0: HALVES[2]}),
            probe.block_error([1, 2], [HALVES, HALVES[:1]], {}),
            np.array(loss),
            *gradient.values(),
        ]

    probe = ModelProbe(qwen, SQUARE, cache=tmp_path)
    first, runs = ask(probe), probe.runs
    first[2][:] += 0.0  # a caller's copy
    again = ask(probe)
    assert probe.runs == runs
    monkeypatch.setattr(probe_module, "Layers", None)
    monkeypatch.setattr(probe_module, "MaskedModel", None)
    recalled = ask(ModelProbe(qwen, SQUARE, cache=tmp_path))
    for one, two, three in zip(first, again, recalled, strict=True):
        np.testing.assert_array_equal(one, two)
        np.testing.assert_array_equal(one, three)
    with pytest.raises(TypeError):  # other tokens, so nothing is known
        ask(ModelProbe(qwen, RAGGED, cache=tmp_path))


def test_answers_belong_to_tokens_and_settings(qwen, tmp_path, monkeypatch):
    ModelProbe(qwen, SQUARE, cache=tmp_path).layer_error(0, HALVES, {})
    monkeypatch.setattr(probe_module, "Layers", None)
    ModelProbe(qwen, SQUARE, cache=tmp_path).layer_error(0, HALVES, {})
    for corpus, settings in ((RAGGED, {}), (SQUARE, EXACT)):
        with pytest.raises(TypeError):  # nothing is known, so layers would have to run
            ModelProbe(qwen, corpus, cache=tmp_path, **settings).layer_error(0, HALVES, {})


def test_each_step_has_a_batch_of_its_own(qwen):
    probe = ModelProbe(qwen, SQUARE, mask_batch_tokens=1)
    count = len(SQUARE.windows)
    losses = [probe.mask_gradient(masks_of(qwen), step)[0] for step in range(count + 1)]
    assert len(set(losses)) == count and losses[count] == losses[0]


def test_damaged_answers_are_computed_again(qwen, tmp_path):
    expected = ModelProbe(qwen, SQUARE, cache=tmp_path).layer_error(0, HALVES, {})
    (file,) = tmp_path.glob("*.json")
    whole = file.read_text()
    document = json.loads(whole)
    document["arrays"]["error"]["values"][0] += 1.0
    for damaged in (whole[:-5], json.dumps(document), json.dumps(document["arrays"]), "[]"):
        file.write_text(damaged)
        np.testing.assert_array_equal(ModelProbe(qwen, SQUARE, cache=tmp_path).layer_error(0, HALVES, {}), expected)
        assert file.read_text() == whole


def test_what_is_changed_by_a_caller_is_not_remembered(qwen):
    probe = ModelProbe(qwen, SQUARE)
    errors = probe.layer_error(0, HALVES, {})
    expected = errors.copy()
    errors[:] = 0.0
    np.testing.assert_array_equal(probe.layer_error(0, HALVES, {}), expected)


def test_what_a_probe_refuses(tmp_path_factory, qwen):
    deepseek = Checkpoint.open(tiny_checkpoint("deepseek_v2", tmp_path_factory.mktemp("deepseek_v2")))
    with pytest.raises(ConfigError, match="layers with experts: 1, 2"):
        ModelProbe(deepseek, SQUARE).layer_view(0, {})
    probe = ModelProbe(qwen, SQUARE)
    with pytest.raises(ConfigError, match="names layer 2"):
        probe.layer_error(2, [LayerPlan()], {2: LayerPlan()})
    for layers in ([], [1, 3], [3, 4]):
        with pytest.raises(ConfigError, match="consecutive decoder layers among 0 to 3"):
            probe.block_error(layers, [[LayerPlan()]] * len(layers), {})
    with pytest.raises(ConfigError, match="non-empty lists of candidates"):
        probe.block_error([1, 2], [[LayerPlan()], []], {})
    with pytest.raises(PlanError, match="layer 1: expert 8 does not exist"):
        probe.layer_error(1, [LayerPlan(experts=(0, 8))], {})
    with pytest.raises(ConfigError, match=r"mask of layer 1 has shape \(7,\)"):
        probe.mask_gradient({1: np.ones(7)}, 0)
    with pytest.raises(ConfigError, match="counted from 0"):
        probe.mask_gradient({1: np.ones(8)}, -1)
    with pytest.raises(RefusedError, match="constants"):
        probe.layer_error(1, [LayerPlan(experts=(0, 1, 2), constants=(3,), router="map")], {})
    with pytest.raises(RefusedError, match="constants"):
        probe.layer_view(1, {0: LayerPlan(experts=(0, 1, 2), constants=(3,), router="map")})
    with pytest.raises(StatsError, match="token id 500"):
        ModelProbe(qwen, Corpus.of([[1, 500]]))
    assert probe.runs == 0
