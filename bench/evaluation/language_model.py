"""A model in memory as lm-eval sees it, with batches by length and logits only where they are scored."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from lm_eval.models.huggingface import HFLM
from lm_eval.models.utils import _add_special_kwargs, has_bos_prefix

from bench.evaluation.health import Written
from methods.framework.errors import EvaluationError

_LOG = logging.getLogger("moebench.evaluation")
Pair = tuple[Any, list[int], list[int]]  # the request, context tokens, continuation tokens
_TEXTS = 4096
"""Texts that one call of the tokenizer takes."""
_SCORES = 1 << 24
"""Logarithms of probabilities that are in memory at once."""


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

    *Differs* from HFLM: texts are tokenised many at a time, batches are filled up to a number of tokens rather than of
    sequences, the output layer runs on scored positions alone, requests with the same input (one-token answers to one
    question) share one row, and encodings are remembered for the next model with the same tokenizer. The log-probabilities
    are the same numbers up to the rounding that a different batch shape brings.
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
        self._texts: dict[str, list[int]] = {}
        self.written: dict[str, list[Written]] = {}
        """Texts that were written, by their prompts."""
        self._just_written: list[Written] = []

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **settings: Any) -> list[int]:
        """Return the tokens of a text, from memory where it was tokenised with others."""
        if add_special_tokens is None and not settings and string in self._texts:
            return self._texts[string]
        tokens: list[int] = super().tok_encode(string, add_special_tokens=add_special_tokens, **settings)
        return tokens

    def _tokenise(self, texts: Iterable[str]) -> None:
        """Remember the tokens of many texts, as ``tok_encode`` gives them one by one."""
        prefix = self.tokenizer.decode(self.prefix_token_id)
        apart: dict[bool, list[str]] = {False: [], True: []}
        for text in dict.fromkeys(texts):
            if text:
                apart[has_bos_prefix(text, prefix)].append(text)
        for begun, some in apart.items():
            # As in ``tok_encode``: a text that begins with the token gets no second one.
            settings = _add_special_kwargs(False if begun else None, self.add_bos_token)
            for start in range(0, len(some), _TEXTS):
                part = some[start : start + _TEXTS]
                found = self.tokenizer(part, return_attention_mask=False, **settings)["input_ids"]
                self._texts.update(zip(part, found, strict=True))

    def _encode_pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        key = (context, continuation)
        if key not in self._encodings:
            self._encodings[key] = super()._encode_pair(context, continuation)
        return self._encodings[key]

    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = True) -> list[tuple[float, bool]]:
        """Return log-likelihood and greediness of each continuation."""
        unknown = [request.args for request in requests if request.args not in self._encodings]
        self._tokenise(text for context, continuation in unknown for text in (context.rstrip(), context + continuation))
        answers: list[tuple[float, bool]] = super().loglikelihood(requests, disable_tqdm=True)
        return answers

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = True) -> list[float]:
        """Return the log-likelihood of each document."""
        self._tokenise(request.args[0] for request in requests)
        answers: list[float] = super().loglikelihood_rolling(requests, disable_tqdm=True)
        return answers

    def generate_until(self, requests: list[Any], disable_tqdm: bool = True) -> list[str]:
        """Return the generated text of each request."""
        self._tokenise(request.args[0] for request in requests)
        self.cache_hook = self
        answers: list[str] = super().generate_until(requests, disable_tqdm=True)
        self._done(len(requests))
        return answers

    def add_partial(self, kind: str, request: tuple[Any, ...], answer: Any) -> None:
        """Take the next text of the batch that was written last, as lm-eval's cache would: one by one, with its prompt.

        Args:
            kind: of the request.
            request: its arguments, the prompt first.
            answer: the text as it is scored.
        """
        if kind == "generate_until":
            self.written.setdefault(request[0], []).append(self._just_written.pop(0))

    def _model_generate(self, context: torch.Tensor, max_length: int, stop: list[str], **settings: Any) -> torch.Tensor:
        answer: torch.Tensor = super()._model_generate(
            context, max_length, stop, logits_processor=[_refuse_nonsense], **settings
        )
        self._just_written = [self._read(row, stop) for row in answer[:, context.shape[1] :].tolist()]
        return answer

    def _read(self, row: list[int], stop: list[str]) -> Written:
        """Return a text from its tokens, with what ends it and fills it up."""
        own = self.model.generation_config.eos_token_id
        closing = {self.eot_token_id, self.tokenizer.pad_token_id, *(own if isinstance(own, list) else [own])}
        length = next((place for place, token in enumerate(row) if token in closing), len(row))
        ended = length < len(row) or any(text in self.tokenizer.decode(row) for text in stop if text)
        return Written(tuple(row[:length]), ended)

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
        tokens_BT = torch.tensor([[*ids, *[0] * (width - len(ids))] for ids in batch])
        # Padding is on the right, where causal attention does not see it.
        first = min(len(ids) - max(map(len, wanted)) for ids, wanted in zip(batch, continuations, strict=True))
        if first < 0:
            raise EvaluationError(
                f"a text to be scored is {-first} tokens longer than the {self.max_length} that the model takes; leave the task "
                "out, or raise max_length where the model allows it"
            )
        kept = torch.arange(first, width, device=self.device)
        logits_PV = self.model(tokens_BT.to(self.device), use_cache=False, logits_to_keep=kept).logits.flatten(0, 1)
        places: list[int] = []
        targets: list[int] = []
        owners: list[int] = []
        lengths: list[int] = []
        for row, (ids, wanted) in enumerate(zip(batch, continuations, strict=True)):
            end = row * (width - first) + len(ids) - first
            for continuation in wanted:
                places += range(end - len(continuation), end)
                targets += continuation
                owners += [len(lengths)] * len(continuation)
                lengths.append(len(continuation))
        # Continuations of one input share positions, whose logarithms are taken once.
        used_M, place_N = torch.tensor(places, dtype=torch.long, device=self.device).unique(return_inverse=True)
        target_N = torch.tensor(targets, dtype=torch.long, device=self.device)
        owner_N = torch.tensor(owners, dtype=torch.long, device=self.device)
        logs_N = torch.empty(len(targets), dtype=torch.float64, device=self.device)
        best_N = torch.empty_like(target_N)
        at_once = max(1, _SCORES // logits_PV.shape[1])
        for start in range(0, len(used_M), at_once):
            scores_MV = torch.log_softmax(logits_PV[used_M[start : start + at_once]].float(), dim=-1)
            here_N = ((place_N >= start) & (place_N < start + at_once)).nonzero().squeeze(1)
            row_N = place_N[here_N] - start
            logs_N[here_N] = scores_MV[row_N, target_N[here_N]].double()
            best_N[here_N] = scores_MV.argmax(dim=-1)[row_N]
        sums = torch.zeros(len(lengths), dtype=torch.float64, device=self.device).index_add_(0, owner_N, logs_N)
        missed = torch.zeros_like(sums).index_add_(0, owner_N, (best_N != target_N).double())
        answers: list[list[tuple[float, bool]]] = [[] for _ in batch]
        found = zip(sums.tolist(), missed.tolist(), strict=True)
        for row, wanted in enumerate(continuations):
            for _ in wanted:
                total, wrong = next(found)
                if not math.isfinite(total):
                    raise EvaluationError(f"the model's log-likelihood of a text is {total}: {_NONSENSE}")
                answers[row].append((total, wrong == 0))
        return answers
