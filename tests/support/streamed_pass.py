"""What tests of the streamed pass share: corpora, states of both sides, a rule with fixed decisions."""

from __future__ import annotations

import numpy as np
import torch
from transformers import AutoModelForCausalLM

from bench.calibration.conditions import Conditions, Effort
from bench.calibration.streaming import StreamedPass
from bench.text.corpus import Corpus
from methods.framework.stats import CATALOGUE
from tests.support.tiny import tiny_tokens

LINEARS = frozenset(name for name, spec in CATALOGUE.items() if spec.scope in ("attention", "network"))
"""Moments of linear layers beside the experts, which have hooks of their own in ``test_calibrate_linears``."""
NEEDS = frozenset(CATALOGUE) - LINEARS
RAGGED = Corpus.of([w[:n] for w, n in zip(tiny_tokens(5).tolist(), (24, 7, 24, 1, 7), strict=True)], "ragged")
SQUARE = Corpus.of(tiny_tokens(), "square")


def plain_model(checkpoint, dtype=torch.float32):
    return AutoModelForCausalLM.from_pretrained(checkpoint.path, dtype=dtype, experts_implementation="eager").eval()


def streamed_states(checkpoint, corpus, decide=None, needs=(), **settings):
    """Return the states at every boundary, (B, T, D), sequences in the order of the pass (by length)."""
    effort = Effort(**{"batch_tokens": 48, "expert_rows": 4096, **settings})
    seen: dict[int, list[torch.Tensor]] = {}
    streamed = StreamedPass(checkpoint, corpus, needs, Conditions("cpu", "float32", effort=effort))
    streamed.run(decide, None, lambda boundary, states: seen.setdefault(boundary, []).append(states.clone()))
    return torch.stack([torch.cat(seen[boundary]) for boundary in sorted(seen)])


def model_states(model, corpus):
    """Return the same from transformers, one sequence at a time and hence without padding."""
    columns = []
    outputs: list[torch.Tensor] = []
    for layer in model.model.layers:
        layer.register_forward_hook(lambda module, args, output: outputs.append(output[0]))
    for window in sorted(corpus.windows, key=len):
        outputs.clear()
        with torch.no_grad():
            embedded = model.model.embed_tokens(torch.tensor(window))
            model.model(torch.tensor([window]), use_cache=False)
        columns.append(torch.stack([embedded, *outputs]))
    return torch.cat(columns, dim=1)


def assert_same(ours, theirs, rtol=1e-5, names=NEEDS):
    for name in names:
        assert len(ours.values[name]) == len(theirs.values[name])
        for a, b in zip(ours.values[name], theirs.values[name], strict=True):
            assert (a is None) == (b is None)
            if a is not None:
                # A cosine is rounded relative to the vectors' lengths, that is to 1, however near to 0 it is.
                floor = np.finfo(np.float32).eps if CATALOGUE[name].unit == "1" else 0.0
                atol = max(rtol * np.abs(b).max(), floor)
                np.testing.assert_allclose(a, b, rtol=rtol, atol=atol, err_msg=name)


class Fixed:
    """Decides what it was given, and remembers which statistics it saw."""

    def __init__(self, plans):
        self.plans, self.seen, self.digest = plans, {}, "fixed"

    def __call__(self, layer, stats):
        self.seen[layer] = stats
        return self.plans[layer]

    def experts(self, layer, plan, stats):
        return None
