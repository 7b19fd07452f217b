"""The committed pocket models: files, configuration, routing, damage, and accuracy through lm-eval."""

from __future__ import annotations

import json
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from bench.pocket import DOMAINS, POCKET_MODELS, TASKS, corpus, measured, pocket_path, write_tasks
from bench.pocket.balance import entropy, recorded, routers, specialisation, without
from bench.pocket.damage import random_experts
from bench.pocket.language import items
from bench.pocket.language.lexicon import encode, vocabulary
from bench.pocket.score import ITEM_SEED, accuracy, domain_accuracy
from bench.pocket.written import load_entropy

FILES = (
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
    "training.json",
)
MOE_LAYERS = 6

APART = ("pocket-mixtral", "pocket-qwen2moe", "pocket-deepseek")
"""Models whose experts each began at random, so that none can stand for another."""

every_model = pytest.mark.parametrize("name", POCKET_MODELS)


def config(name: str) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((pocket_path(name) / "config.json").read_text())
    return loaded


def training(name: str) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((pocket_path(name) / "training.json").read_text())
    return loaded


def loaded_model(name: str) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(pocket_path(name), dtype=torch.float32).eval()


def test_an_unknown_model_is_refused_with_the_names() -> None:
    with pytest.raises(ValueError, match="pocket-mixtral"):
        pocket_path("pocket-llama")


@every_model
def test_the_checkpoint_is_complete_and_small(name: str) -> None:
    assert sorted(path.name for path in pocket_path(name).iterdir()) == sorted(FILES)
    assert (pocket_path(name) / "model.safetensors").stat().st_size <= 12_000_000


@every_model
def test_weights_are_bfloat16_with_one_tensor_for_each_expert(name: str) -> None:
    with safe_open(pocket_path(name) / "model.safetensors", "pt") as file:
        names = list(file.keys())
        assert {file.get_slice(key).get_dtype() for key in names} == {"BF16"}
    mixtral = config(name)["model_type"] == "mixtral"
    part = "block_sparse_moe.experts.0.w1" if mixtral else "mlp.experts.0.gate_proj"
    assert sum(f".{part}.weight" in key for key in names) == MOE_LAYERS


def test_the_coarse_model_is_mixtral_with_eight_experts() -> None:
    found = config("pocket-mixtral")
    assert found["architectures"] == ["MixtralForCausalLM"]
    assert (found["num_local_experts"], found["num_experts"], found["num_experts_per_tok"]) == (8, 8, 2)


def test_the_model_of_copies_has_the_architecture_and_tokens_of_the_coarse_one_and_nothing_else_in_common() -> None:
    assert config("pocket-upcycled") == config("pocket-mixtral")
    facts, other = training("pocket-upcycled"), training("pocket-mixtral")
    assert facts["tokens"] == other["tokens"]
    assert facts["recipe"]["steps"] + facts["dense_recipe"]["steps"] == other["recipe"]["steps"]
    assert facts["mean_accuracy"] >= other["mean_accuracy"]


def test_experts_of_one_ancestor_are_alike_in_weights_and_those_trained_apart_are_not() -> None:
    found = {}
    for name in ("pocket-upcycled", "pocket-mixtral"):
        weights = [weight for key, weight in loaded_model(name).named_parameters() if ".mlp.experts." in key]
        flat = [torch.nn.functional.normalize(weight.detach().flatten(1), dim=-1) for weight in weights]
        pairs = [(one @ one.T)[tuple(torch.triu_indices(8, 8, 1))].mean().item() for one in flat]
        found[name] = fmean(pairs)
    assert found["pocket-upcycled"] > 0.4
    assert abs(found["pocket-mixtral"]) < 0.05


def test_the_fine_grained_model_has_a_gated_shared_expert_and_raw_probabilities() -> None:
    found = config("pocket-qwen2moe")
    assert found["architectures"] == ["Qwen2MoeForCausalLM"]
    assert found["num_experts"] == found["num_local_experts"] >= 32
    assert found["num_experts_per_tok"] == 4
    assert found["norm_topk_prob"] is False
    assert found["shared_expert_intermediate_size"] > 0


def test_the_deepseek_model_has_a_dense_first_layer_two_shared_experts_and_real_latent_sizes() -> None:
    found = config("pocket-deepseek")
    assert found["architectures"] == ["DeepseekV2ForCausalLM"]
    assert (found["kv_lora_rank"], found["qk_rope_head_dim"], found["q_lora_rank"]) == (512, 64, None)
    assert found["first_k_dense_replace"] == 1
    assert found["n_routed_experts"] >= 32
    assert (found["num_experts_per_tok"], found["n_shared_experts"]) == (4, 2)
    assert found["norm_topk_prob"] is False


@every_model
def test_every_moe_layer_routes_with_the_weights_that_its_config_names(name: str) -> None:
    model = loaded_model(name)
    gates = routers(model)
    assert len(gates) == MOE_LAYERS
    with recorded(model) as records, torch.no_grad():
        model(torch.tensor(corpus(tokens=128)))
    for logits, weights, chosen in records:
        assert chosen.shape[-1] == model.config.num_experts_per_tok
        probabilities = logits.softmax(-1).gather(-1, chosen)
        normed = config(name)["model_type"] == "mixtral"
        expected = probabilities / probabilities.sum(-1, keepdim=True) if normed else probabilities
        torch.testing.assert_close(weights, expected)


@every_model
def test_the_tokenizer_reads_the_language_back_word_for_word(name: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(pocket_path(name))
    assert tokenizer.get_vocab() == vocabulary()
    assert len(vocabulary()) == config(name)["vocab_size"]
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id) == (config(name)["bos_token_id"],) * 2
    for domain in DOMAINS:
        for item in items(domain, 0, 20):
            whole = f"{item.context} {item.choices[0]}"
            assert tokenizer.encode(whole) == encode(item.context) + encode(item.choices[0])
            assert tokenizer.decode(tokenizer.encode(whole)) == whole


@every_model
def test_the_stored_accuracy_and_load_are_those_of_the_stored_weights(name: str) -> None:
    record, model = training(name), loaded_model(name)
    for domain in DOMAINS[POCKET_MODELS.index(name) :: len(POCKET_MODELS)]:  # a share each; lm-eval scores all of them
        found = accuracy(model, items(domain, ITEM_SEED, record["items_per_domain"]))
        assert found == pytest.approx(record["accuracy"][domain], abs=0.01)
    entropies = load_entropy(model)
    assert entropies == pytest.approx(record["load_entropy"], abs=0.01)
    assert min(entropies) > (0.8 if name in APART else 0.75)


@every_model
def test_training_kept_to_twenty_minutes_of_two_cores(name: str) -> None:
    assert training(name)["cpu_seconds"] <= 2 * 20 * 60


@pytest.mark.parametrize("name", APART)
def test_removing_half_of_the_experts_at_random_hurts_what_experts_hold(name: str) -> None:
    model = loaded_model(name)
    gates = routers(model)
    text = torch.tensor(corpus(tokens=256))
    with torch.no_grad():
        before = model(text).logits
    whole = domain_accuracy(model, 50)
    removed = random_experts(len(gates), gates[0].get_parameter("weight").shape[0], 0.5, seed=7)
    with without(model, removed), recorded(model) as records:
        halved = domain_accuracy(model, 50)
    assert not any(removed[index % MOE_LAYERS][routing[2]].any() for index, routing in enumerate(records))
    assert fmean(halved.values()) < fmean(whole.values()) - 0.05
    assert halved["arithmetic"] < whole["arithmetic"] - 0.2
    with torch.no_grad():
        assert torch.equal(model(text).logits, before), "they are back"


@every_model
def test_the_random_removal_curve_falls(name: str) -> None:
    curve = [row["mean_accuracy"] for row in training(name)["random_removal"]]
    assert [row["removed"] for row in training(name)["random_removal"]] == [0.0, 0.25, 0.5, 0.75]
    assert curve[0] == training(name)["mean_accuracy"]
    assert curve == sorted(curve, reverse=True)
    assert curve[0] - curve[2 if name in APART else 3] > 0.08


def test_copies_stand_for_one_another_where_experts_trained_apart_do_not() -> None:
    copies, apart = (training(name)["random_removal"][1:] for name in ("pocket-upcycled", "pocket-mixtral"))
    assert all(one["mean_accuracy"] > other["mean_accuracy"] + 0.05 for one, other in zip(copies, apart, strict=True))


def test_a_removed_share_is_the_same_in_each_layer_and_the_seed_decides_it() -> None:
    mask = random_experts(6, 32, 0.25, seed=0)
    assert mask.sum(-1).tolist() == [8] * 6
    assert torch.equal(mask, random_experts(6, 32, 0.25, seed=0))
    assert not torch.equal(mask, random_experts(6, 32, 0.25, seed=1))
    assert not torch.equal(mask[0], mask[1])


def test_entropy_is_one_for_an_even_load_and_zero_for_a_single_expert() -> None:
    assert entropy(torch.full((8,), 0.125)) == pytest.approx(1.0)
    assert entropy(torch.eye(8)[0]) == 0.0


def test_specialisation_is_zero_when_all_text_takes_the_same_way_and_one_when_each_has_its_expert() -> None:
    assert specialisation(torch.full((4, 8), 0.125)) == pytest.approx(0.0, abs=1e-6)
    assert specialisation(torch.eye(4)) == pytest.approx(1.0)


def test_accuracy_counts_the_likeliest_choice() -> None:
    model, questions = loaded_model("pocket-mixtral"), items("facts", 0, 40)
    turned = [type(item)(item.context, item.choices, (item.answer + 1) % len(item.choices)) for item in questions]
    assert accuracy(model, questions) > 0.9
    assert accuracy(model, turned) < 0.1
    assert accuracy(model, questions, batch=7) == accuracy(model, questions)


def test_the_readme_holds_the_measured_tables() -> None:
    text = (Path(measured.__file__).parent / "README.md").read_text()
    assert measured.tables() in text


@pytest.mark.e2e
@every_model
def test_average_accuracy_through_lm_eval_is_at_least_ninety_percent(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    import lm_eval
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    tokenizer = AutoTokenizer.from_pretrained(pocket_path(name))
    folder = write_tasks(tmp_path)
    outcome = lm_eval.simple_evaluate(
        model=HFLM(pretrained=loaded_model(name), tokenizer=tokenizer, batch_size=64),
        tasks=list(TASKS),
        task_manager=TaskManager(include_path=str(folder), include_defaults=False),
        bootstrap_iters=0,
    )
    results = outcome["results"]
    found = {domain: results[f"pocket_{domain}"]["acc,none"] for domain in DOMAINS}
    assert sum(found.values()) / len(found) >= 0.9
    assert found == pytest.approx(training(name)["accuracy"], abs=0.02)
    for domain in ("arithmetic", "stories"):
        assert results[f"pocket_{domain}_gen"]["exact_match,answer"] >= found[domain] - 0.15
    assert 1.0 < results["pocket_ppl"]["word_perplexity,none"] < 10.0
