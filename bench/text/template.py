"""What a chat template is told beside the conversation: a system's turn, whether the model thinks, arguments of its own."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from bench.settings.named_values import read_values
from methods.framework.errors import MoebenchError

if TYPE_CHECKING:
    from bench.settings.stage_settings import CalibrationConfig

THINKING = ("enable_thinking", "thinking")
"""Names that templates give to the argument which switches thinking, the more common one first."""
_CODE = re.compile(r"\{[%{](.*?)[%}]\}", re.DOTALL)
_QUOTED = re.compile(r"'[^']*'|\"[^\"]*\"")


@dataclass(frozen=True, slots=True)
class Talk:
    """What conversations get beside their turns.

    Args:
        system: the system's turn of conversations that have none; None: none.
        thinking: value of the template's argument that switches thinking; None leaves it out.
        arguments: further arguments of the template.
    """

    system: str | None = None
    thinking: bool | None = None
    arguments: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, settings: CalibrationConfig) -> Talk:
        """Return what the settings of a calibration say."""
        return cls(settings.system_instruction, settings.enable_thinking, read_values(settings.template_arguments))

    @property
    def silent(self) -> bool:
        """Whether it adds nothing."""
        return self == Talk()

    def begun(self, messages: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
        """Return a conversation with the system's turn at its start, unless it has one of its own."""
        if self.system is None or messages[0]["role"] == "system":
            return list(messages)
        return [{"role": "system", "content": self.system}, *messages]

    def told(self, template: str, kind: type[MoebenchError]) -> dict[str, Any]:
        """Return the arguments as ``template`` calls them.

        Args:
            template: text of the chat template.
            kind: class of the error.

        Raises:
            MoebenchError: of class ``kind``: the template does not know one of them, so that nothing would change.
        """
        found = dict(self.arguments)
        if self.thinking is not None:
            name = next((one for one in THINKING if _knows(template, one)), None)
            if name is None:
                raise kind(
                    f"the chat template does not know the argument {' or '.join(THINKING)}, so that nothing would change; leave "
                    "--enable-thinking out"
                )
            if name in found:
                raise kind(f"--enable-thinking and the template argument {name} say the same; give one of them")
            found[name] = self.thinking
        if unknown := [name for name in self.arguments if not _knows(template, name)]:
            raise kind(
                f"the chat template does not know the argument {unknown[0]}, so that nothing would change; leave it out of "
                "--template-arguments"
            )
        return found


SILENT = Talk()
"""Adds nothing."""


def _knows(template: str, name: str) -> bool:
    """Return whether the code of a template, its texts aside, speaks of a variable."""
    word = re.compile(rf"(?<![\w.]){re.escape(name)}(?!\w)")
    return any(word.search(_QUOTED.sub("", code)) for code in _CODE.findall(template))
