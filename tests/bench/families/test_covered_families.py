"""Families on which not everything is tried: tensors, states, statistics and written checkpoints against transformers."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open

from bench.applying.apply import apply
from bench.applying.in_memory import realised
from bench.calibration.calibrate import calibrate
from bench.checkpoint.checkpoint import Checkpoint
from bench.families.family import family_named, family_of
from bench.laws.covering import COVERED
from bench.models.load import load_model
from bench.serving.kinds import compression
from bench.text.corpus import Corpus
from methods.framework.errors import PlanError
from methods.framework.inventory import PASSED_ROLE, Inventory
from tests.support.family_reference import gate_norm_moments, layer_states
from tests.support.streamed_pass import streamed_states
from tests.support.tiny import tiny_checkpoint, tiny_model, tiny_tokens

WINDOWS = [window[:length] for window, length in zip(tiny_tokens(3).tolist(), (7, 13, 24), strict=True)]
RAGGED = Corpus.of(WINDOWS, "ragged")
FORMS = ("plain", "variant")
KINDS = ("counts", "sublayer", "block", "merged", "constants", "channels", "factored", "packed4")
INSIDE = KINDS[5:]


@cache
def opened(name: str, form: str) -> Checkpoint:
    return Checkpoint.open(tiny_checkpoint(name, **(family_named(name).file.variant if form == "variant" else {})))


def without_passed(inventory: Inventory) -> Inventory:
    return replace(inventory, outer=tuple(entry for entry in inventory.outer if entry.role != PASSED_ROLE))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", COVERED)
def test_a_config_tells_the_tensors_that_transformers_writes(name: str, form: str) -> None:
    source = opened(name, form)
    config = json.loads((source.path / "config.json").read_text())
    assert family_of(config).name == name
    with safe_open(source.path / "model.safetensors", "pt") as file:
        written = {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118 - not a dict
    inventory = source.family.inventory(config)
    passed = {entry.name for entry in source.inventory.tensors() if entry.role == PASSED_ROLE}
    assert bool(passed) == (source.family.file.wrapper is not None)
    ours, theirs = source.family.file_shapes(inventory), {key: written[key] for key in written if key not in passed}
    if any(
        rule.swapped for rule in source.family.file.tensors.fused
    ):  # transformers reads both ways and writes the other
        ours, theirs = ({key: tuple(sorted(shape)) for key, shape in shapes.items()} for shapes in (ours, theirs))
    assert ours == theirs
    assert inventory == without_passed(source.inventory)
    assert inventory.tied_embeddings != any(key.endswith("lm_head.weight") for key in written)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", COVERED)
def test_placement_names_the_parameters_of_transformers(name: str, form: str) -> None:
    source = opened(name, form)
    model = tiny_model(name, **(source.family.file.variant if form == "variant" else {}))
    state = model.state_dict()
    tied = set(model.all_tied_weights_keys) if source.inventory.tied_embeddings else set()
    assert source.family.module_shapes(source.inventory) == {
        key: tuple(tensor.shape) for key, tensor in state.items() if key not in tied
    }
    for entry in without_passed(source.inventory).tensors():
        place = source.family.placement(entry)
        assert torch.equal(place.within(state[place.name]).reshape(entry.shape), source.read(entry)), entry.name


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", COVERED)
def test_the_streamed_pass_sees_what_transformers_computes(name: str, form: str) -> None:
    source = opened(name, form)
    model = load_model(source.path, experts_implementation="eager")
    theirs, ours = layer_states(model, source, WINDOWS), streamed_states(source, RAGGED)
    scale = theirs.abs().amax(dim=(1, 2), keepdim=True).clamp_min(1.0)
    assert ((ours - theirs) / scale).abs().max() <= 1e-5
    assert (theirs[1:] - theirs[:-1]).abs().amax(dim=(1, 2)).min() > 0.01, "a layer does nothing, so nothing was tested"
    measured = calibrate(source, RAGGED, {"gate_norm_moment"})
    for layer, expected in gate_norm_moments(model, source, WINDOWS).items():
        found = measured.layer("gate_norm_moment", layer)
        assert np.array_equal(found[:, 0, 0], expected[:, 0, 0])
        assert expected[:, 0, 0].sum() == 44 * source.inventory.layers[layer].top_k
        scale = np.abs(expected).max(axis=0)
        assert (np.abs(found - expected) / scale).max() <= 1e-6


@pytest.mark.thorough
@pytest.mark.parametrize("name", COVERED)
def test_what_is_written_reloads_with_the_logits_of_the_original_so_changed(name: str, tmp_path: Path) -> None:
    place = COVERED.index(name)
    for turn, kind in enumerate(KINDS):
        source = opened(name, FORMS[(place + turn) % 2])
        if kind in INSIDE and any(layer.biased for layer in source.inventory.layers):
            with pytest.raises(PlanError, match="its experts have biases"):
                compression(source, kind)
            continue
        if kind == "constants" and source.inventory.router.weighs_inputs:
            with pytest.raises(PlanError, match="multiplies what an expert takes in"):
                compression(source, kind)
            continue
        moments = calibrate(source, RAGGED, {"routed_output_mean"}) if kind == "constants" else None
        tokens, plan = tiny_tokens(2, 16, seed=1), compression(source, kind)
        if kind == "block" and source.inventory.whole_depth is not None:
            with pytest.raises(
                PlanError, match="decoder layers of this model cannot be dropped: its config states which"
            ):
                apply(source, plan, tmp_path / kind)
            continue
        model = load_model(source.path)
        with torch.no_grad():
            before = model(tokens).logits
            written = load_model(apply(source, plan, tmp_path / kind, moments=moments))(tokens).logits
            with realised(model, source.inventory, plan, moments):
                inside = model(tokens).logits
            assert torch.equal(model(tokens).logits, before), kind
        assert (inside - written).abs().max() <= 1e-5 * max(1.0, float(before.abs().max())), kind
        assert (before - written).abs().max() > 1e-3, f"{kind} changes nothing, so it shows nothing"
