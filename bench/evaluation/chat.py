"""Prompts of tasks as conversations, in the chat template of the model's tokenizer."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from bench.text.template import Talk
from methods.framework.errors import EvaluationError


@dataclass(frozen=True)
class Chat:
    """How prompts become conversations.

    *Differs* from lm-eval: a template that refuses the system's turn is an error, where lm-eval leaves the turn out.

    Args:
        tokenizer: of the model, with a chat template.
        system: what the system's turn says, None for no such turn.
        turns: whether each example of few-shot is a question and an answer, rather than part of one question.
        thinking: value of the template's argument that switches thinking; None leaves it out.
        arguments: further arguments of the template.
    """

    tokenizer: Any
    system: str | None = None
    turns: bool = False
    thinking: bool | None = None
    arguments: Mapping[str, Any] = field(default_factory=dict)

    @property
    def template(self) -> str:
        """The tokenizer's template.

        Raises:
            EvaluationError: it has none, or several without a default.
        """
        stated = getattr(self.tokenizer, "chat_template", None)
        text = stated.get("default") if isinstance(stated, dict) else stated
        if not text:
            raise EvaluationError(
                "the tokenizer has no chat template; leave --apply-chat-template out, or put the model's "
                "chat_template.jinja beside its weights"
            )
        return str(text)

    @property
    def told(self) -> dict[str, Any]:
        """The arguments that the template gets, as it calls them.

        Raises:
            EvaluationError: it does not know one of them.
        """
        return Talk(thinking=self.thinking, arguments=self.arguments).told(self.template, EvaluationError)

    @property
    def key(self) -> str:
        """Digest of all that conversations depend on."""
        special = sorted((name, str(value)) for name, value in self.tokenizer.special_tokens_map.items())
        told = self.told
        content = [self.template, special, self.system, self.turns, self.thinking, *([told] if self.arguments else [])]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()

    def render(self, conversation: Sequence[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """Return a conversation as text.

        Args:
            conversation: turns, each with a role and a text.
            add_generation_prompt: whether the answer begins a new turn; else it goes on with the last one.

        Raises:
            EvaluationError: the template refuses it.
        """
        own = self.told
        try:
            return str(
                self.tokenizer.apply_chat_template(
                    list(conversation),
                    tokenize=False,
                    add_generation_prompt=add_generation_prompt,
                    continue_final_message=not add_generation_prompt,
                    **own,
                )
            )
        except Exception as error:  # templates raise what they like, besides jinja's own errors
            told = " ".join(str(error).split())[:200]
            raise EvaluationError(
                f"the chat template refuses a prompt ({told}); leave out what it does not take"
            ) from error
