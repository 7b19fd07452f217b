"""The trainer: optimiser, schedule, resumption, what it leaves behind."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from bench.pocket import POCKET_MODELS, train
from bench.pocket.architectures import pocket_config
from bench.pocket.balance import balance_loss
from bench.pocket.optimiser import Muon, orthogonalise
from bench.pocket.train import Recipe, batch, learn, new_model, optimisers, rate

pytestmark = pytest.mark.thorough

SHORT = Recipe(steps=4, tokens=64, length=32, short_length=16, short_share=0.5, warmup=2)


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.mark.parametrize("shape", [(16, 48), (48, 16), (3, 16, 48)])
def test_orthogonalised_updates_have_singular_values_near_one(shape: tuple[int, ...]) -> None:
    update = torch.randn(shape, generator=generator())
    values = torch.linalg.svdvals(orthogonalise(update))
    assert torch.linalg.svdvals(update).max() > 5
    assert values.min() > 0.6
    assert values.max() < 1.3


def test_a_stack_of_matrices_is_orthogonalised_one_by_one() -> None:
    stack = torch.randn((3, 8, 24), generator=generator())
    torch.testing.assert_close(orthogonalise(stack), torch.stack([orthogonalise(matrix) for matrix in stack]))


def test_muon_finds_the_minimum_of_a_quadratic() -> None:
    target = torch.randn((8, 8), generator=generator())
    weight = torch.nn.Parameter(torch.zeros(8, 8))
    optimiser = Muon([weight], lr=0.2)
    for step in range(300):
        optimiser.param_groups[0]["lr"] = 0.2 * (1 - step / 300)
        optimiser.zero_grad()
        (weight - target).square().sum().backward()
        optimiser.step()
    torch.testing.assert_close(weight.data, target, atol=0.05, rtol=0.0)


@pytest.mark.parametrize("name", POCKET_MODELS)
def test_each_weight_has_one_optimiser_and_muon_has_the_experts_but_no_router(name: str) -> None:
    model = new_model(name, 0)
    muon, adam = optimisers(model, 0.1)
    names = {id(weight): key for key, weight in model.named_parameters()}
    by_muon = {names[id(weight)] for group in muon.param_groups for weight in group["params"]}
    by_adam = {names[id(weight)] for group in adam.param_groups for weight in group["params"]}
    assert by_muon | by_adam == set(names.values())
    assert not by_muon & by_adam
    assert {key for key in names.values() if "experts." in key} <= by_muon
    assert {key for key in names.values() if key.endswith("mlp.gate.weight") or "embed" in key} <= by_adam


def test_the_learning_rate_rises_then_falls_to_zero() -> None:
    recipe = Recipe(steps=100, learning_rate=1.0, warmup=10)
    rates = [rate(step, recipe) for step in range(101)]
    assert max(rates) == rates[9]
    assert rates[0] < 0.11
    assert rates[100] == 0.0
    assert sorted(rates[9:], reverse=True) == rates[9:]


def test_a_step_has_its_own_text_and_a_seed_decides_it() -> None:
    assert batch(0, 3, SHORT)[0].shape == batch(0, 3, SHORT)[1].shape == (2, 32)
    assert torch.equal(batch(0, 3, SHORT)[0], batch(0, 3, SHORT)[0])
    assert not torch.equal(batch(0, 3, SHORT)[0], batch(0, 4, SHORT)[0])
    assert not torch.equal(batch(0, 3, SHORT)[0], batch(1, 3, SHORT)[0])


def test_balance_loss_is_one_for_an_even_load_and_grows_when_one_expert_takes_all() -> None:
    even = (torch.zeros(8, 4), torch.ones(8, 1), torch.arange(8)[:, None] % 4)
    uneven = (torch.tensor([[9.0, 0.0, 0.0, 0.0]]).expand(8, 4), torch.ones(8, 1), torch.zeros(8, 1, dtype=torch.long))
    assert balance_loss([even]).item() == pytest.approx(1.0)
    assert balance_loss([uneven]).item() > 3.9


@pytest.mark.parametrize("name", POCKET_MODELS)
def test_a_training_that_was_stopped_goes_on_as_if_it_had_not(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train, "CHECKPOINT_EVERY", 2)
    whole, stopped, resumed = (new_model(name, 0) for _ in range(3))
    losses = [progress.loss for progress in learn(whole, SHORT, 0)]
    for progress in learn(stopped, SHORT, 0, tmp_path / "checkpoint.pt"):
        if progress.step == 3:
            break
    steps = [progress.step for progress in learn(resumed, SHORT, 0, tmp_path / "checkpoint.pt")]
    assert steps == [3, 4]
    assert losses[0] > losses[-1]
    for expected, found in zip(whole.parameters(), resumed.parameters(), strict=True):
        torch.testing.assert_close(found, expected)


def test_a_checkpoint_of_another_recipe_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train, "CHECKPOINT_EVERY", 1)
    model = new_model("pocket-mixtral", 0)
    next(iter(learn(model, SHORT, 0, tmp_path / "checkpoint.pt")))
    with pytest.raises(ValueError, match="another recipe or seed"):
        next(iter(learn(model, replace(SHORT, steps=5), 0, tmp_path / "checkpoint.pt")))


def test_training_leaves_a_complete_checkpoint_with_its_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(train.RECIPES, "pocket-mixtral", SHORT)
    record = train.train("pocket-mixtral", tmp_path, seed=3, steps=1, items=2)
    assert json.loads((tmp_path / "training.json").read_text()) == record
    assert (record["seed"], record["recipe"]["steps"], record["tokens"]) == (3, 1, 64)
    assert not (tmp_path / train.CHECKPOINT).exists()
    assert json.loads((tmp_path / "config.json").read_text())["num_experts"] == 8


def test_an_unknown_architecture_is_refused() -> None:
    with pytest.raises(ValueError, match="pocket-deepseek"):
        pocket_config("pocket-llama", vocab_size=8, bos=0, eos=0, pad=0)
