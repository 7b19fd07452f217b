"""Settings of what is measured before a method decides, and of what is scored after it."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator

from bench.settings.mixture import CorpusLine
from bench.settings.named_values import NamedValues
from bench.settings.strict import Extended

Bos = Literal["as evaluated", "always", "never"]
"""When a window of text begins with the tokenizer's beginning of a sequence."""
TRUST = "let the tokenizer run Python code that lies beside the weights"
"""What ``trust_remote_code`` does, in every place where it is a setting."""
THINKS = "argument enable_thinking (or thinking) of the chat template; None leaves it out"
ARGUMENTS = "further arguments of the chat template as NAME=VALUE, such as reasoning_effort=high"
POCKET = "pocket"
"""Name of a task list: all tasks of the pocket language."""


class CalibrationConfig(Extended):
    """What statistics are measured on."""

    later: ClassVar[tuple[str, ...]] = (
        "device",
        "bos",
        "answers_only",
        "system_instruction",
        "enable_thinking",
        "template_arguments",
        "moments",
        "states",
        "hidden_mib",
    )

    corpus: CorpusLine = Field(
        default="pocket",
        description="text file, datasets:NAME, pocket[:domain], chat:FILE, a file of token ids, or a mixture a=0.5,b=0.5",
    )
    sequences: int = Field(default=128, ge=1, description="windows")
    length: int = Field(default=2048, ge=2, description="tokens in a window")
    seed: int = Field(default=0, ge=0, description="seed of the choice of windows")
    bos: Bos = Field(
        default="as evaluated",
        description="beginning-of-sequence token at the start of each window; as evaluation adds it",
    )
    answers_only: bool = Field(
        default=False, description="count tokens of answers alone, as the chat template marks them; conversations only"
    )
    system_instruction: str | None = Field(
        default=None, description="the system's turn of conversations that have none"
    )
    enable_thinking: bool | None = Field(default=None, description=THINKS)
    template_arguments: NamedValues = Field(default=(), description=ARGUMENTS)
    propagation: Literal["one_shot", "sequential"] = Field(default="one_shot", description="hidden states measured on")
    sampled_tokens: int = Field(
        default=4096, ge=1, description="tokens on which every expert runs, for statistics and methods that need it"
    )
    device: str = Field(
        default="auto",
        description="torch device of the statistics and of what is computed from them; auto takes the GPU where there is one",
    )
    moments: Literal["auto", "kept", "by_layer"] = Field(
        default="auto",
        description="Gram matrices of all layers kept for all methods, or measured for each method and gone with their layer; "
        "auto keeps up to 1 GiB",
    )
    states: Literal["computed", "bfloat16"] = Field(
        default="computed", description="type in which hidden states lie between two layers"
    )
    hidden_mib: int = Field(
        default=1024, ge=1, description="MiB of hidden states in memory; more lie in a file, in blocks of that size"
    )


class EvaluationConfig(Extended):
    """What is scored, and how."""

    later: ClassVar[tuple[str, ...]] = (
        "apply_chat_template",
        "system_instruction",
        "fewshot_as_multiturn",
        "enable_thinking",
        "template_arguments",
        "shipped_generation",
        "generation",
        "stop",
        "think_end_token",
    )
    of_conversations: ClassVar[tuple[str, ...]] = later[:5]

    tasks: tuple[str, ...] = Field(default=(), description="lm-eval task names, or pocket; none scores nothing")
    include_path: Path | None = Field(default=None, description="folder of local task files")
    limit: int | None = Field(default=None, ge=1, description="first items of each task; None takes all")
    batch_size: int | None = Field(default=None, ge=1, description="sequences in a batch; None fills batches by tokens")
    num_fewshot: int | None = Field(default=None, ge=0, description="None: what the task says")
    max_length: int | None = Field(default=None, ge=2, description="context window in tokens; None: the model's")
    seed: int = Field(default=0, ge=0, description="seed of few-shot draws and bootstrap")
    dtype: Literal["float32", "bfloat16", "float16"] = Field(default="float32", description="compute type")
    device: str = Field(default="auto", description="torch device; auto takes the GPU where there is one")
    apply_chat_template: bool = Field(
        default=False, description="ask prompts as conversations, in the model's template"
    )
    system_instruction: str | None = Field(default=None, description="the system's turn of these conversations")
    fewshot_as_multiturn: bool = Field(default=False, description="examples of few-shot as turns of their own")
    enable_thinking: bool | None = Field(default=None, description=THINKS)
    template_arguments: NamedValues = Field(default=(), description=ARGUMENTS)
    shipped_generation: bool = Field(
        default=False, description="generate texts as generation_config.json of the model says, not as the task says"
    )
    generation: NamedValues = Field(
        default=(), description="settings of generation in place of those, as NAME=VALUE, such as temperature=0.6"
    )
    stop: tuple[str, ...] = Field(default=(), description="texts that end an answer, beside those of the task")
    think_end_token: str | None = Field(
        default=None, description="what ends the model's thinking; what stands before it is no part of the answer"
    )

    @model_validator(mode="after")
    def _only_in_conversations(self) -> Self:
        asked = [name for name in self.of_conversations[1:] if getattr(self, name) not in (None, False, ())]
        if self.enable_thinking is False:
            asked.append("enable_thinking")
        if asked and not self.apply_chat_template:
            raise ValueError(f"{asked[0]} is about conversations; set apply_chat_template too")
        return self

    def expanded(self, store: Path) -> EvaluationConfig:
        """Return the settings with the task list ``pocket`` replaced by its tasks, which are written into the folder ``store``.

        A folder of local tasks of the user's own may hold a task of that name, so nothing is replaced where there is one.
        """
        if POCKET not in self.tasks or self.include_path is not None:
            return self
        from bench.pocket import TASKS, write_tasks

        tasks = tuple(task for name in self.tasks for task in (TASKS if name == POCKET else (name,)))
        return self.model_copy(update={"tasks": tasks, "include_path": write_tasks(store / "tasks")})
