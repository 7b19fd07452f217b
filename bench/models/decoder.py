"""The stack of decoder layers of a language model in memory."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def decoder_of(model: PreTrainedModel) -> Any:
    """Return the module that has ``layers``, and gives the states behind the final norm as ``last_hidden_state``.

    ``base_model`` is the model itself where transformers states for it the name that the language model has in a larger one.
    """
    base = model.base_model
    return base if base is not model else model.model
