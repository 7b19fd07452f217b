"""Prompts as conversations: what the model is asked, what is refused, and what changes ids."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from bench.evaluation.chat import Chat
from bench.evaluation.evaluate import evaluate
from bench.evaluation.tasks import load_tasks
from bench.settings.stage_settings import EvaluationConfig
from bench.settings.strict import validated
from methods.framework.errors import ConfigError, EvaluationError
from tests.bench.evaluation.test_evaluate import _tokenizer, write_local_tasks
from tests.support.tiny import tiny_model

TEMPLATE = (
    "{% for m in messages %}[{{ m.role }}] {{ m.content }} {% endfor %}"
    "{% if enable_thinking is defined and enable_thinking %}(think) {% endif %}"
    "{% if add_generation_prompt %}[assistant] {% endif %}"
)
STRICT = "{% if messages[0].role == 'system' %}{{ raise_exception('no system turn') }}{% endif %}" + TEMPLATE


def spoken(template: str | None = TEMPLATE, **settings: Any) -> Chat:
    tokenizer = _tokenizer()
    tokenizer.chat_template = template
    return Chat(tokenizer, **settings)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_local_tasks(tmp_path_factory.mktemp("tasks"))


def asked(folder: Path, chat: Chat | None, shots: int = 0) -> tuple[str, str]:
    """Return the first prompt of a task, and the task's digest."""
    leaves, _ = load_tasks(["local_short"], folder, num_fewshot=shots, limit=3, seed=0, chat=chat)
    leaf = leaves["local_short"]
    return leaf.task.instances[0].args[0], leaf.digest


def test_prompts_stand_in_the_template(folder: Path) -> None:
    plain, digest = asked(folder, None)
    prompt, other = asked(folder, spoken())
    assert prompt == f"[user] {plain} [assistant] " and other != digest
    with_system, third = asked(folder, spoken(system="w1 w2"))
    assert with_system == f"[system] w1 w2 {prompt}" and third not in (digest, other)
    assert asked(folder, None) == (plain, digest)


def test_examples_are_turns_where_asked_for(folder: Path) -> None:
    together, _ = asked(folder, spoken(), shots=2)
    apart, _ = asked(folder, spoken(turns=True), shots=2)
    assert together.count("[user]") == 1 and together.count("[assistant]") == 1
    assert apart.count("[user]") == apart.count("[assistant]") == 3


def test_thinking_is_the_templates_own_argument(folder: Path) -> None:
    on, off, left = spoken(thinking=True), spoken(thinking=False), spoken()
    question = [{"role": "user", "content": "w1"}]
    assert on.render(question) == "[user] w1 (think) [assistant] "
    assert off.render(question) == left.render(question) == "[user] w1 [assistant] "
    assert len({on.key, off.key, left.key}) == 3
    with pytest.raises(EvaluationError, match="before which no model thinks"):
        asked(folder, on)


def test_what_a_template_cannot_say_is_refused(folder: Path) -> None:
    with pytest.raises(EvaluationError, match="has no chat template"):
        asked(folder, spoken(None))
    with pytest.raises(EvaluationError, match="does not know the argument"):
        asked(folder, spoken("{{ messages[0].content }}", thinking=False))
    with pytest.raises(EvaluationError, match="no system turn"):
        asked(folder, spoken(STRICT, system="w1"))


def test_scores_in_conversations_are_kept_apart(folder: Path, tmp_path: Path) -> None:
    chat, model = spoken(), tiny_model("mixtral")
    tasks = ["local_short"]
    common: dict[str, Any] = {"include_path": folder, "limit": 3, "model_digest": "m", "cache": tmp_path}
    plain = evaluate(model, chat.tokenizer, tasks, **common)
    first = evaluate(model, chat.tokenizer, tasks, **common, chat=chat)
    again = evaluate(model, chat.tokenizer, tasks, **common, chat=chat)
    assert plain.cached == first.cached == () and again.cached == ("local_short",)
    assert first.scores == again.scores and {s.digest for s in first.scores} != {s.digest for s in plain.scores}


@pytest.mark.parametrize(
    "field", [{"system_instruction": "x"}, {"fewshot_as_multiturn": True}, {"enable_thinking": False}]
)
def test_settings_of_conversations_need_one(field: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="set apply_chat_template too"):
        validated(field, EvaluationConfig, "file")
    document = validated({**field, "apply_chat_template": True}, EvaluationConfig, "file").model_dump()
    assert document["apply_chat_template"] is True and document.items() >= field.items()


def test_without_conversations_ids_stay() -> None:
    document = EvaluationConfig(tasks=("local_short",)).model_dump()
    assert set(EvaluationConfig.later).isdisjoint(document)


def test_templates_call_their_arguments_as_they_like(folder: Path) -> None:
    other = TEMPLATE.replace("enable_thinking", "thinking").replace("(think)", "(thinking '{{ effort }}')")
    chat = spoken(other, thinking=True, arguments={"effort": "high"})
    assert chat.told == {"thinking": True, "effort": "high"}
    assert chat.render([{"role": "user", "content": "w1"}]) == "[user] w1 (thinking 'high') [assistant] "
    assert chat.key != spoken(other, thinking=True).key
    for template, settings, words in (
        (other, {"arguments": {"budget": 3}}, "does not know the argument budget"),
        (TEMPLATE, {"thinking": True, "arguments": {"enable_thinking": False}}, "say the same"),
        ("{{ 'enable_thinking' }}{{ messages }}", {"thinking": True}, "enable_thinking or thinking"),
    ):
        with pytest.raises(EvaluationError, match=words):
            asked(folder, spoken(template, **settings))
