"""A model in memory as lm-eval sees it, with batches by length and logits only where they are scored."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from lm_eval.models.huggingface import HFLM

from methods.framework.errors import EvaluationError

_LOG = logging.getLogger("moebench.evaluation")
Pair = tuple[Any, list[int], list[int]]  # the request, context tokens, continuation tokens


_NONSENSE = (
    "its outputs are not finite, so no score of it means anything. Its weights hold NaN or infinities, or overflow in this "
    "dtype; fetch the checkpoint again, or evaluate in float32"
)


def _refuse_nonsense(input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
    """Return the scores of the next token, of which some may be barred (minus infinity).

    Raises:
        EvaluationError: one is NaN or plus infinity; the token that is chosen would mean nothing.
    """
    if torch.isnan(scores).any() or torch.isposinf(scores).any():
        raise EvaluationError(f"the model writes a text: {_NONSENSE}")
    return scores


class LiveModel(HFLM):  # type: ignore[misc]  # lm_eval is untyped
    """HFLM around a live model.

    *Differs* from HFLM: batches are filled up to a number of tokens rather than of sequences, the output layer runs on
    scored positions alone, requests with the same input (one-token answers to one question) share one row, and
    encodings are remembered for the next model with the same tokenizer. The log-probabilities are the same numbers up
    to the rounding that a different batch shape brings.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        batch_size: int | None,
        max_length: int | None,
        think_end_token: str | None = None,
        encodings: dict[tuple[str, str], tuple[list[int], list[int]]],
        done: Callable[[int], None],
    ) -> None:
        """Wrap ``model``.

        Args:
            model: causal language model of transformers.
            tokenizer: its tokenizer.
            batch_size: sequences in a batch, None to fill batches by tokens.
            max_length: longest input in tokens, None for the model's own limit.
            think_end_token: what ends the model's thinking in a text, which is what stands behind it; None: all of it.
            encodings: memory of encoded requests, shared by models with the same tokenizer.
            done: called with the number of requests just finished.
        """
        super().__init__(
            pretrained=model,
            tokenizer=tokenizer,
            batch_size=batch_size or 64,
            max_length=max_length,
            think_end_token=think_end_token,
        )
        self._rows = batch_size
        self._tokens, self._logits = (4096, 1 << 26) if self.device.type == "cpu" else (65536, 1 << 30)
        self._encodings, self._done = encodings, done

    def _encode_pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        key = (context, continuation)
        if key not in self._encodings:
            self._encodings[key] = super()._encode_pair(context, continuation)
        return self._encodings[key]

    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = True) -> list[tuple[float, bool]]:
        """Return log-likelihood and greediness of each continuation."""
        answers: list[tuple[float, bool]] = super().loglikelihood(requests, disable_tqdm=True)
        return answers

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = True) -> list[float]:
        """Return the log-likelihood of each document."""
        answers: list[float] = super().loglikelihood_rolling(requests, disable_tqdm=True)
        return answers

    def generate_until(self, requests: list[Any], disable_tqdm: bool = True) -> list[str]:
        """Return the generated text of each request."""
        answers: list[str] = super().generate_until(requests, disable_tqdm=True)
        self._done(len(requests))
        return answers

    def _model_generate(self, context: torch.Tensor, max_length: int, stop: list[str], **settings: Any) -> torch.Tensor:
        answer: torch.Tensor = super()._model_generate(
            context, max_length, stop, logits_processor=[_refuse_nonsense], **settings
        )
        return answer

    def _loglikelihood_tokens(
        self, requests: Sequence[Pair], disable_tqdm: bool = True, override_bs: int | None = None
    ) -> list[tuple[float, bool]]:
        rows: dict[tuple[int, ...], list[int]] = {}
        cut = sum(len(context) + len(continuation) > self.max_length + 1 for _, context, continuation in requests)
        if cut:
            _LOG.warning("%d of %d requests were cut on the left to %d tokens", cut, len(requests), self.max_length)
        for index, (_, context, continuation) in enumerate(requests):
            whole = (*context, *continuation)[-(self.max_length + 1) :]
            rows.setdefault(whole[:-1], []).append(index)
        answers: list[tuple[float, bool]] = [(0.0, False)] * len(requests)
        inputs = sorted(rows, key=lambda row: (-len(row), row))
        longest = max((len(continuation) for _, _, continuation in requests), default=1)
        start = 0
        while start < len(inputs):
            fitting = min(self._tokens // len(inputs[start]), self._logits // (longest * self.tokenizer.vocab_size))
            count = self._rows or max(1, fitting)
            batch = inputs[start : start + count]
            try:
                scored = self._score(batch, [[requests[index][2] for index in rows[row]] for row in batch])
            except torch.OutOfMemoryError:
                if count == 1:
                    raise
                self._rows, self._tokens = (max(1, count // 2) if self._rows else None), max(1, self._tokens // 2)
                torch.cuda.empty_cache()
                continue
            for row, results in zip(batch, scored, strict=True):
                for index, result in zip(rows[row], results, strict=True):
                    answers[index] = result
            self._done(sum(len(rows[row]) for row in batch))
            start += len(batch)
        return answers

    @torch.inference_mode()
    def _score(
        self, batch: Sequence[tuple[int, ...]], continuations: Sequence[Sequence[list[int]]]
    ) -> list[list[tuple[float, bool]]]:
        """Return the answers for each row: its last positions are scored against each of its continuations."""
        width = len(batch[0])
        tokens = torch.zeros(len(batch), width, dtype=torch.long)
        for row, ids in enumerate(batch):
            tokens[row, : len(ids)] = torch.tensor(ids)
        # Padding is on the right, where causal attention does not see it.
        first = min(len(ids) - max(map(len, wanted)) for ids, wanted in zip(batch, continuations, strict=True))
        kept = torch.arange(max(0, first), width, device=self.device)
        logits = self.model(tokens.to(self.device), use_cache=False, logits_to_keep=kept).logits
        sums, greedy, owners = [], [], []
        for row, (ids, wanted) in enumerate(zip(batch, continuations, strict=True)):
            for continuation in wanted:
                end = len(ids) - max(0, first)
                target = torch.tensor(continuation, device=self.device)
                logs = torch.log_softmax(logits[row, end - len(continuation) : end].float(), dim=-1)
                sums.append(logs.gather(-1, target[:, None]).sum())
                greedy.append((logs.argmax(dim=-1) == target).all())
                owners.append(row)
        answers: list[list[tuple[float, bool]]] = [[] for _ in batch]
        pairs = zip(torch.stack(sums).tolist(), torch.stack(greedy).tolist(), strict=True)
        for row, (total, same) in zip(owners, pairs, strict=True):
            if not math.isfinite(total):
                raise EvaluationError(f"the model's log-likelihood of a text is {total}: {_NONSENSE}")
            answers[row].append((total, bool(same)))
        return answers
