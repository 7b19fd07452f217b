"""How texts are generated: as the task says, as the model ships it, as set; where answers end; and what is told of it."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from bench.checkpoint.checkpoint import Checkpoint
from bench.evaluation.evaluate import evaluate
from bench.evaluation.generation import Generation, generation_of, shipped_with
from bench.evaluation.tasks import load_tasks
from bench.pocket import pocket_path
from bench.running.stages import evaluation_info
from bench.settings.stage_settings import EvaluationConfig
from bench.settings.strict import validated
from methods.framework.errors import ConfigError, EvaluationError
from tests.bench.evaluation.test_evaluate import _tokenizer, write_local_tasks
from tests.support.tiny import tiny_model

SHIPPED = {
    "do_sample": True,
    "temperature": 0.6,
    "top_p": 0.95,
    "eos_token_id": [1, 2],
    "max_new_tokens": 9,
    "transformers_version": "5",
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model that ships settings of generation."""
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "generation_config.json").write_text(json.dumps(SHIPPED))
    return tmp_path / "model"


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_local_tasks(tmp_path_factory.mktemp("tasks"))


def asked(**fields: Any) -> EvaluationConfig:
    return validated(fields, EvaluationConfig, "file")


def test_what_is_shipped_and_what_is_set(folder: Path, tmp_path: Path) -> None:
    assert generation_of(asked(), folder) is None
    shipped = generation_of(asked(shipped_generation=True), folder)
    assert shipped is not None and shipped.samples
    assert shipped.values == {"do_sample": True, "temperature": 0.6, "top_p": 0.95}, "ends and lengths are the task's"
    both = generation_of(asked(shipped_generation=True, generation=["top_p=0.5", "max_gen_toks=7"]), folder)
    assert both is not None
    assert both.values == {"do_sample": True, "temperature": 0.6, "top_p": 0.5, "max_gen_toks": 7}
    warm = generation_of(asked(generation={"temperature": 0.7}), tmp_path)
    assert warm is not None and warm.values == {"temperature": 0.7, "do_sample": True}
    cold = generation_of(asked(generation={"temperature": 0.0}), tmp_path)
    assert cold is not None and not cold.samples
    drawn = generation_of(asked(generation={"do_sample": True}), tmp_path)
    assert drawn is not None and drawn.values["temperature"] == 1.0
    assert shipped_with(folder) == {name: SHIPPED[name] for name in SHIPPED if name != "transformers_version"}
    assert shipped_with(tmp_path) == {}


def test_the_tasks_own_settings_give_way_and_its_ends_stay() -> None:
    own = {"until": "\n", "do_sample": False, "temperature": 0.0, "max_gen_toks": 5}
    made = Generation({"do_sample": True, "temperature": 0.6}, ("END",)).over(own)
    assert made == {"until": ["\n", "END"], "do_sample": True, "temperature": 0.6, "max_gen_toks": 5}
    assert Generation({}, ("END",)).over({}) == {"until": ["END"]}
    assert Generation({"top_k": 3}).over({"max_gen_toks": 5}) == {"top_k": 3, "max_gen_toks": 5}


def test_what_cannot_be_is_refused(folder: Path, tmp_path: Path, tasks: Path) -> None:
    with pytest.raises(EvaluationError, match=r"has no generation_config\.json that says how"):
        generation_of(asked(shipped_generation=True), tmp_path)
    with pytest.raises(EvaluationError, match=r"setting of generation.*temperature"):
        generation_of(asked(generation=["temprature=1"]), folder)
    with pytest.raises(EvaluationError, match="given by --stop"):
        generation_of(asked(generation={"until": ["x"]}), folder)
    with pytest.raises(ConfigError, match="is no NAME=VALUE"):
        asked(generation=["warm"])
    with pytest.raises(ConfigError, match="stands twice"):
        asked(generation=["top_k=1", "top_k=2"])
    (folder / "generation_config.json").write_text("[]")
    with pytest.raises(EvaluationError, match="generation_config"):
        generation_of(asked(shipped_generation=True), folder)
    with pytest.raises(EvaluationError, match="none of the tasks local_short generates a text"):
        load_tasks(["local_short"], tasks, num_fewshot=0, limit=2, seed=0, generation=Generation({"top_k": 3}))


def answers(tasks: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, **settings: Any) -> tuple[list[Any], str, Any]:
    """Return what a tiny model writes in a task, the digest of the score, and what transformers was told."""
    model, told = tiny_model("mixtral"), []
    generate = model.generate
    monkeypatch.setattr(model, "generate", lambda **settings: told.append(settings) or generate(**settings))
    found = evaluate(
        model, _tokenizer(), ["local_write"], include_path=tasks, limit=3, model_digest="m", cache=cache, **settings
    )
    assert told, "nothing of it was there already"
    return list(found.items.values()), found.scores[0].digest, told[0]


def test_texts_are_generated_as_asked(tasks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(place: str, **settings: Any) -> tuple[list[Any], str, Any]:
        return answers(tasks, tmp_path / place, monkeypatch, **settings)

    warm = Generation({"do_sample": True, "temperature": 5.0, "top_k": 7})
    greedy, drawn, again = run("a"), run("b", generation=warm), run("c", generation=warm)
    ended, thought = run("a", generation=Generation({}, ("w1",))), run("a", think_end_token="w2")
    assert len({greedy[1], drawn[1], ended[1], thought[1]}) == 4, "each is a score of its own"
    assert drawn[:2] == again[:2], "the seed decides what is drawn"
    assert greedy[2]["do_sample"] is False and "top_k" not in greedy[2]
    assert {name: drawn[2][name] for name in warm.values} == warm.values
    batches = run("b", generation=warm, batch_size=2)
    assert batches[1] != drawn[1], "draws depend on the batch"


def test_a_record_tells_how_the_model_was_asked(tmp_path: Path) -> None:
    (model := tmp_path / "model").mkdir()
    for file in pocket_path("pocket-mixtral").iterdir():
        if file.is_file():
            (model / file.name).write_bytes(file.read_bytes())
    template = "{% for m in messages %}{{ m.content }}{% endfor %}{{ thinking }}"
    (model / "chat_template.jinja").write_text(template)
    (model / "generation_config.json").write_text(json.dumps(SHIPPED))
    settings = {"apply_chat_template": True, "enable_thinking": False, "generation": ["top_p=0.5"], "stop": ["END"]}
    told = evaluation_info(asked(**settings, shipped_generation=True, limit=3), Checkpoint.open(model))
    assert told.chat_template == hashlib.sha256(template.encode()).hexdigest()
    assert told.template_arguments == {"thinking": False} and told.limit == 3 and told.dtype == "float32"
    assert told.generation == {"do_sample": True, "temperature": 0.6, "top_p": 0.5} and told.stop == ("END",)
    assert told.generation_config == {name: SHIPPED[name] for name in SHIPPED if name != "transformers_version"}
    plain = evaluation_info(asked(), Checkpoint.open(model))
    assert (plain.chat_template, plain.template_arguments, plain.generation, plain.stop) == (None, {}, {}, ())
