"""A model in memory as lm-eval sees it: texts that are tokenised together, answers that share an input."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tokenizers import processors
from transformers import PreTrainedTokenizerFast

from bench.evaluation.language_model import LiveModel
from methods.framework.errors import EvaluationError
from tests.bench.evaluation.test_evaluate import _tokenizer
from tests.support.tiny import tiny_model


def _beginning() -> PreTrainedTokenizerFast:
    """Return a tokenizer that puts the beginning-of-sequence token before each text."""
    tokenizer = _tokenizer()
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 0)])
    return tokenizer


def _live(tokenizer: Any, **settings: Any) -> LiveModel:
    options = {"batch_size": None, "max_length": 20, **settings}
    return LiveModel(tiny_model("mixtral"), tokenizer, encodings={}, done=lambda count: None, **options)


def test_texts_tokenised_many_at_a_time_have_their_own_tokens() -> None:
    texts = ["w1 w2", "<s> w1 w2", "w3", "w1 w2 w9"]
    live, alone = _live(_beginning()), _live(_beginning())
    live._tokenise(texts)
    for text in texts:
        assert live.tok_encode(text) == alone.tok_encode(text) and live.tok_encode(text).count(0) == 1
    assert live.tok_encode("w3", add_special_tokens=False) == alone.tok_encode("w3", add_special_tokens=False)
    assert alone._texts == {} and set(live._texts) == set(texts)


def test_answers_are_those_of_the_logits_whatever_shares_a_batch() -> None:
    live = _live(_tokenizer())
    draw = torch.Generator().manual_seed(0)
    requests: list[Any] = []
    for size in (3, 5, 5, 8):
        context = torch.randint(3, 150, (size,), generator=draw).tolist()
        for length in (1, 1, 3):
            requests.append((None, context, torch.randint(3, 150, (length,), generator=draw).tolist()))
    answers = live._loglikelihood_tokens(requests)
    for (_, context, continuation), (total, greedy) in zip(requests, answers, strict=True):
        with torch.inference_mode():
            logs = live.model(torch.tensor([[*context, *continuation]])).logits[0].log_softmax(dim=-1)
        own = logs[len(context) - 1 : -1]
        assert total == pytest.approx(float(own.gather(1, torch.tensor(continuation)[:, None]).sum()), rel=1e-5)
        assert greedy == (own.argmax(dim=-1).tolist() == continuation)


def test_a_text_longer_than_the_model_takes_is_told() -> None:
    with pytest.raises(EvaluationError, match="2 tokens longer than the 20 that the model takes"):
        _live(_tokenizer())._loglikelihood_tokens([(None, [3], [4] * 22)])


def test_each_text_is_known_by_its_prompt() -> None:
    live = _live(_tokenizer())
    live._just_written = [live._read([5, 6, 1, 1], []), live._read([5, 6, 7, 8], []), live._read([9, 6, 7, 8], ["w4"])]
    for prompt in ("a", "b", "c"):
        live.add_partial("generate_until", (prompt, {}), "text")
    assert {prompt: (one.tokens, one.ended) for prompt, (one,) in live.written.items()} == {
        "a": ((5, 6), True),
        "b": ((5, 6, 7, 8), False),
        "c": ((9, 6, 7, 8), True),  # token 7 is w4
    }
