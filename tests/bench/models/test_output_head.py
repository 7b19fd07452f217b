"""Logits from final states are those of transformers, also where a family divides or bounds them."""

from __future__ import annotations

import pytest
import torch

from bench.models.output_head import OutputHead
from tests.support.tiny import tiny_model, tiny_tokens


@pytest.mark.parametrize("family", ["olmoe", "granitemoe"])
def test_logits_are_those_of_the_model(family: str) -> None:
    model, tokens = tiny_model(family), tiny_tokens(2, 9)
    head = OutputHead.of(model)
    with torch.no_grad():
        states = model.base_model(tokens, use_cache=False).last_hidden_state
        expected = model(tokens, use_cache=False).logits
        assert torch.equal(head(states), expected)
        plain = model.get_output_embeddings()(states)
    assert head.vocab == expected.shape[-1]
    assert torch.equal(plain, expected) == (family == "olmoe")


def test_a_divisor_goes_before_the_cap() -> None:
    head = OutputHead(torch.nn.Identity(), divisor=2.0, cap=3.0)
    states = torch.tensor([0.0, 2.0, -1e4])
    torch.testing.assert_close(head(states), torch.tensor([0.0, 3.0 * float(torch.tensor(1 / 3).tanh()), -3.0]))
