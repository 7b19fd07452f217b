"""Moments of the inputs of attention, dense networks and shared experts: against hooks on the plain model, and refusals."""

from __future__ import annotations

from collections import defaultdict

import numpy as np
import pytest
import torch

from bench.applying.apply import apply
from bench.calibration.calibrate import calibrate
from bench.calibration.conditions import Effort
from bench.checkpoint.checkpoint import Checkpoint
from bench.models.load import load_model
from bench.text.corpus import Corpus
from methods.framework.inside import Quantisation
from methods.framework.layer_plan import LayerPlan
from methods.framework.linears import all_sites, sites
from methods.framework.plan import Plan
from tests.support.streamed_pass import LINEARS, RAGGED, assert_same


def reference(checkpoint, windows, marks=None):
    """Return all statistics from what the modules of the plain model are called with, token by token."""
    model = load_model(checkpoint.path, dtype=torch.float64, experts_implementation="eager")
    heard = defaultdict(list)
    for index, layer in enumerate(checkpoint.inventory.layers):
        for entry in layer.tensors:
            for part, site in all_sites(layer):
                if entry.role == site.roles[0]:
                    module = model.get_submodule(checkpoint.family.placement(entry).name.removesuffix(".weight"))
                    key = (part, index, site.name)
                    module.register_forward_pre_hook(lambda _, args, key=key: heard[key].append(args[0]))
    found = {name: [None] * len(checkpoint.inventory.layers) for name in LINEARS}
    with torch.no_grad():
        for window in windows:
            model.model(torch.tensor([list(window)]), use_cache=False)
    counted = None if marks is None else [mark for row in marks for mark in row]
    for index, layer in enumerate(checkpoint.inventory.layers):
        for part in ("attention", "network"):
            rows = [
                torch.cat([x.reshape(-1, x.shape[-1]) for x in heard[part, index, s.name]]) for s in sites(layer, part)
            ]
            rows = [x if counted is None else x[torch.tensor(counted)] for x in rows]
            if rows:
                found[f"{part}_square"][index] = torch.cat([x.square().mean(0) for x in rows])
                found[f"{part}_magnitude"][index] = torch.cat([x.abs().mean(0) for x in rows])
                grams = [torch.stack([torch.outer(t, t) for t in x]).mean(0).flatten() for x in rows]
                found[f"{part}_gram"][index] = torch.cat(grams)
    return found


def assert_close(found, value, what):
    """Products are summed in float32, so small ones are as exact as large ones."""
    atol = 1e-6 * float(value.abs().max()) if what.split()[0].endswith("gram") else 1e-12
    np.testing.assert_allclose(found, value.numpy(), rtol=1e-5, atol=atol, err_msg=what)


@pytest.mark.parametrize("family", ["deepseek_v2", "qwen2_moe", "mixtral"])
def test_they_are_what_the_modules_of_the_model_are_called_with(tiny, family):
    checkpoint = tiny(family)
    ours = calibrate(checkpoint, RAGGED, LINEARS, dtype="float64", effort=Effort(hidden_bytes=5 * 64 * 8 * 30))
    theirs = reference(checkpoint, RAGGED.windows)
    for name in LINEARS:
        for index, value in enumerate(theirs[name]):
            found = ours.values[name][index]
            assert (found is None) == (value is None), (name, index)
            if value is not None:
                assert_close(found, value, f"{name} {index}")
    networks = {"deepseek_v2": 3, "qwen2_moe": 3, "mixtral": 0}[family]
    assert sum(value is not None for value in ours.values["network_gram"]) == networks
    gram = ours.values["attention_gram"][0]
    assert isinstance(gram, np.memmap) and gram.dtype == np.float32


def test_blocks_change_no_value(tiny, tmp_path):
    checkpoint = tiny("deepseek_v2")
    whole = calibrate(checkpoint, RAGGED, LINEARS, dtype="float64")
    for effort in (Effort(hidden_bytes=1), Effort(batch_tokens=1, expert_rows=2, scratch=tmp_path)):
        assert_same(
            calibrate(checkpoint, RAGGED, LINEARS, dtype="float64", effort=effort), whole, rtol=1e-5, names=LINEARS
        )


def test_only_tokens_that_count_are_summed(tiny):
    checkpoint = tiny("deepseek_v2")
    windows = [[3, 4, 5, 6, 7], [9, 8, 7]]
    marks = [[False, True, True, False, True], [True, False, False]]
    corpus = Corpus.of(windows, "some", marks=marks)
    ours = calibrate(checkpoint, corpus, LINEARS, dtype="float64", effort=Effort(expert_rows=2))
    theirs = reference(checkpoint, windows, marks)
    for name in LINEARS:
        for found, value in zip(ours.values[name], theirs[name], strict=True):
            assert_close(found, value, name)


def test_linear_layers_in_few_bits_are_measured_as_the_values_that_they_stand_for(tiny, tmp_path):
    source = tiny("deepseek_v2")
    bits = LayerPlan(bits=Quantisation(scope="all", group=8))
    packed = Checkpoint.open(apply(source, Plan.of(source.inventory, [bits] * 3), tmp_path / "out"))
    ours = calibrate(packed, RAGGED, {"attention_square", "network_square"}, dtype="float64")
    model, found = load_model(packed.path, dtype=torch.float64, experts_implementation="eager"), []
    model.model.layers[2].self_attn.o_proj.register_forward_pre_hook(lambda _, args: found.append(args[0][0]))
    with torch.no_grad():
        for window in RAGGED.windows:
            model.model(torch.tensor([list(window)]), use_cache=False)
    values = next(site for site in sites(packed.inventory.layers[2], "attention") if site.name == "values")
    assert_close(ours.layer("attention_square", 2)[values.row], torch.cat(found).square().mean(0), "square")
    assert ours.layer("network_square", 0).shape == (64 + 96,)
