"""A checkpoint's tokenizer as evaluation uses it: what it puts before a text, between documents and around a conversation."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any

from bench.checkpoint.tokenizer_files import open_tokenizer
from bench.settings.stage_settings import Bos
from bench.text.template import SILENT, Talk
from methods.framework.errors import CheckpointError, ConfigError

if TYPE_CHECKING:
    from bench.checkpoint.checkpoint import Checkpoint

_PROBE = "the"
_GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")
"""What a chat template puts before an answer."""
MASKS = frozenset({"mask", "loss_mask", "weight", "weights", "train"})
"""Keys by which data sets say which turns or tokens a training counts."""


class Encoder:
    """Token ids of texts and conversations, read with the tokenizer of one checkpoint, which is loaded when first needed."""

    def __init__(self, checkpoint: Checkpoint, talk: Talk | None = None) -> None:
        """Encode for ``checkpoint``; ``talk`` says what conversations get beside their turns."""
        self._checkpoint, self._talk = checkpoint, talk or SILENT

    @cached_property
    def _tokenizer(self) -> Any:
        path = self._checkpoint.path
        if not self._checkpoint.tokenizer_files:
            raise ConfigError(
                f"{path} has no tokenizer, which text must be read with; copy the model's tokenizer files there or "
                "give a file of token ids"
            )
        try:
            return open_tokenizer(path, self._checkpoint.trust_remote_code)
        except CheckpointError as error:
            raise ConfigError(f"{error}; files of token ids are read without it where bos is never") from error

    @property
    def end(self) -> list[int]:
        """The ids that separate documents."""
        end = self._tokenizer.eos_token_id
        return [] if end is None else [int(end)]

    def text(self, text: str) -> list[int]:
        """Return the ids of a text alone, without special tokens."""
        # verbose=False: pieces are longer than the model's window on purpose, they are cut afterwards.
        return list(self._tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])

    def chat(self, messages: Any, where: str) -> list[int]:
        """Return the ids of a conversation in the model's own template, which may itself begin with special tokens.

        Args:
            messages: turns, each with a role and a text.
            where: what they are part of, for messages.

        Raises:
            ConfigError: no template, no conversation, one that the template refuses, or one with a mask.
        """
        self._check_conversation(messages, where)
        try:
            return self.text(
                self._tokenizer.apply_chat_template(self._talk.begun(messages), tokenize=False, **self._told)
            )
        except ConfigError:
            raise
        except Exception as error:  # templates raise what they like, besides jinja's own errors
            raise self._refused(where, error) from error

    def answers(self, messages: Any, where: str) -> tuple[list[int], list[bool]]:
        """Return the ids of ``chat``, and for each whether it is part of an answer, as the template marks them.

        A token that lies in an answer with one character or more is part of it.

        Args:
            messages: turns, each with a role and a text.
            where: what they are part of, for messages.

        Raises:
            ConfigError: as ``chat``; a template that marks no answers, or a tokenizer that does not tell where its tokens lie.
        """
        from transformers.utils.chat_template_utils import render_jinja_template

        self._check_conversation(messages, where)
        tokenizer, name = self._tokenizer, self._checkpoint.name
        remedy = "add them to chat_template.jinja, or count every token (answers_only: false)"
        if not _GENERATION.search(tokenizer.get_chat_template()):
            raise ConfigError(
                f"answers_only: the chat template of {name} does not say where answers are: it has no {{% generation %}} and "
                f"{{% endgeneration %}} around them; {remedy}"
            )
        try:
            texts, spans = render_jinja_template(
                conversations=[self._talk.begun(messages)],
                chat_template=tokenizer.get_chat_template(),
                return_assistant_tokens_mask=True,
                **tokenizer.special_tokens_map,
                **self._told,
            )
        except ConfigError:
            raise
        except Exception as error:  # as above
            raise self._refused(where, error) from error
        if not tokenizer.is_fast:
            raise ConfigError(
                f"answers_only: the tokenizer of {name} is plain Python and does not tell which characters a token stands for; "
                "save it as tokenizer.json, or count every token (answers_only: false)"
            )
        # Transformers' own mask runs to the end of the text where an answer ends in a character of no token.
        found = tokenizer(texts[0], add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        inside = [any(a < stop and first < b for a, b in spans[0]) for first, stop in found["offset_mapping"]]
        return list(found["input_ids"]), inside

    @cached_property
    def _told(self) -> dict[str, Any]:
        """The arguments that the chat template gets.

        Raises:
            ConfigError: it does not know one of them.
        """
        return self._talk.told(self._tokenizer.get_chat_template(), ConfigError)

    def _refused(self, where: str, error: Exception) -> ConfigError:
        return ConfigError(f"{where}: the chat template of {self._checkpoint.name} refuses it: {error}")

    def _check_conversation(self, messages: Any, where: str) -> None:
        if not isinstance(messages, list) or not messages or not all(map(_is_turn, messages)):
            raise ConfigError(
                f"{where} is not a conversation but {str(messages)[:60]!r}; allowed: a list of objects with a role and a text "
                "under content"
            )
        if masks := sorted({key for turn in messages for key in turn if key in MASKS}):
            raise ConfigError(
                f"{where} has {', '.join(masks)}: a mask of the data set is not read; remove the key, and count all turns or, "
                "with answers_only, what the chat template marks as answers"
            )
        if not self._tokenizer.chat_template:
            raise ConfigError(
                f"{where} needs a chat template, and the tokenizer of {self._checkpoint.name} has none; add "
                "chat_template.jinja of the model, or calibrate on plain text"
            )

    def opening(self, bos: Bos) -> tuple[int, ...]:
        """Return the ids with which every window begins.

        As evaluated, they are what the tokenizer itself puts before a text, since lm-eval leaves that to it. Always, they
        are the token that lm-eval scores a whole document after: beginning of sequence, else end of text.

        Raises:
            ConfigError: a token is demanded of a tokenizer that has none.
        """
        if bos == "never" or (bos == "as evaluated" and not self._checkpoint.tokenizer_files):
            return ()
        tokenizer = self._tokenizer
        if bos == "always":
            first = tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
            if first is None:
                raise ConfigError(
                    f"bos is always, but the tokenizer of {self._checkpoint.name} has neither a token for the beginning of a "
                    "sequence nor one for the end of a text; allowed here: as evaluated, never"
                )
            return (int(first),)
        if not tokenizer("")["input_ids"]:
            return ()
        plain, whole = self.text(_PROBE), list(tokenizer(_PROBE)["input_ids"])
        if not plain:  # a vocabulary without the probe: only the marks are left of it
            first = tokenizer.bos_token_id
            return tuple(whole[: whole.index(first) + 1]) if first in whole else ()
        places = range(len(whole) - len(plain) + 1)
        start = next((place for place in places if whole[place : place + len(plain)] == plain), 0)
        return tuple(whole[:start])


def _is_turn(turn: Any) -> bool:
    return isinstance(turn, Mapping) and isinstance(turn.get("role"), str) and isinstance(turn.get("content"), str)
