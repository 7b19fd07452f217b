"""Speed of compressed experts beside dense ones: ``python -m bench.perf.experts``.

One MoE layer of the sizes of a published model with random weights: dense, factored and pruned to half of the parameters, by
the loop of the host and by grouped products, on CUDA also as a replayed graph. All run in turn within one process. Outputs
are compared with those in a wider type before any time is taken. The protocol is in ``bench/perf/README.md``.

Letters: T tokens, E experts, K experts per token, D hidden size, F expert width, R rank.
"""

from __future__ import annotations

import argparse
import copy
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from torch import Tensor

from bench.experts.formed_layer import formed_layer
from bench.experts.grouped import without_host
from bench.experts.stored_module import CompressedExperts
from bench.records.environment import processor
from bench.store.store import write_json
from methods.framework.inventory import ExpertForm

SPREAD = 0.3
"""By which the smallest and the largest of spread ranks or widths differ from their mean, as a share of it."""
TOLERANCE: Mapping[torch.dtype, float] = {torch.bfloat16: 1e-2, torch.float32: 1e-5}
"""Largest relative distance (Frobenius) of an output from the one computed in ``WIDER``."""
WIDER: Mapping[torch.dtype, torch.dtype] = {torch.bfloat16: torch.float32, torch.float32: torch.float64}
EVICTED = 256 * 2**20
"""Bytes that are overwritten before each call on CUDA, more than its caches hold."""
LEAST_SECONDS = 2e-3
"""Of CPU time, below which a call is repeated within one measurement."""

Inputs = tuple[Tensor, Tensor, Tensor]
Call = Callable[[], Tensor]


class Size(NamedTuple):
    """Of one MoE layer: D, F, E and K."""

    hidden: int
    width: int
    experts: int
    top_k: int


SIZES: Mapping[str, Size] = {
    "mixtral-8x7b": Size(4096, 14336, 8, 2),
    "deepseek-v2-lite": Size(2048, 1408, 64, 6),
    "qwen3-30b-a3b": Size(2048, 768, 128, 8),
    "olmoe": Size(2048, 1024, 64, 8),
    "olmoe-small": Size(256, 128, 64, 8),
    "pocket-mixtral": Size(128, 128, 8, 2),
}
ON_CPU = ("olmoe-small", "pocket-mixtral")


@dataclass(frozen=True, slots=True)
class Row:
    """One form of the experts at one number of tokens.

    Args:
        size: name of the layer's sizes.
        tokens: T.
        form: how the experts are stored.
        seconds: median time of a call, by way: ``loop``, ``grouped`` and ``graph``.
        ratios: median over the turns of the time of dense experts by grouped products (in a graph for ``graph``) / that time.
        error: relative distance from the output in a wider type, by way.
        bytes_ratio: what is read of the weights: of dense experts / of these. Only experts that are hit count.
        flops_ratio: the same of FLOPs.
        filled: elements that are held for grouped products / that are stored.
        looped_because: why there are no grouped products, if so.
    """

    size: str
    tokens: int
    form: str
    seconds: dict[str, float]
    ratios: dict[str, float]
    error: dict[str, float]
    bytes_ratio: float
    flops_ratio: float
    filled: float
    looped_because: str | None


def forms(size: Size) -> dict[str, ExpertForm]:
    """Return the forms that are compared; all but the first have half of the parameters."""
    rank = size.hidden * size.width // (2 * (size.hidden + size.width))
    return {
        "dense": ExpertForm(),
        "factored": ExpertForm(ranks=((rank,) * 3,) * size.experts),
        "factored, spread": ExpertForm(ranks=tuple((r, r, r) for r in _spread(rank, size.experts))),
        "pruned": ExpertForm(widths=(size.width // 2,) * size.experts),
        "pruned, spread": ExpertForm(widths=tuple(_spread(size.width // 2, size.experts))),
    }


def _spread(mean: int, count: int) -> list[int]:
    """Return evenly spaced numbers around ``mean`` in an order without meaning."""
    order = torch.randperm(count, generator=torch.Generator().manual_seed(0)).tolist()
    return [round(mean * (1 + SPREAD * (2 * place / (count - 1) - 1))) for place in order]


class Held:
    """One form of a layer, held for the loop and for grouped products with the same random weights."""

    @torch.no_grad()
    def __init__(self, size: Size, form: ExpertForm, device: torch.device, dtype: torch.dtype) -> None:
        """Draw the weights.

        Args:
            size: of the layer.
            form: how its experts are stored.
            device: where it is held.
            dtype: of the weights.
        """
        layer = formed_layer(form, size.experts, size.hidden, size.width, size.top_k, "BF16")
        with torch.device(device):
            self.loop = CompressedExperts(layer, F.silu, dtype).requires_grad_(False)
            draw = torch.Generator(device).manual_seed(0)
            for weight in self.loop.parameters():
                weight.normal_(std=weight.shape[1] ** -0.5, generator=draw)
        self.grouped = copy.deepcopy(self.loop)
        self.grouped.finish(grouped=True)
        self.looped_because = self.grouped.looped_because()
        self.numel_E = torch.zeros(size.experts, dtype=torch.int64)
        for entry in layer.tensors:
            self.numel_E[entry.expert] += entry.numel
        self.filled = sum(weight.numel() for weight in self.grouped.parameters()) / int(self.numel_E.sum())

    def ways(self) -> dict[str, CompressedExperts]:
        """Return the modules by the name of their way."""
        return {"loop": self.loop} | ({} if self.looped_because else {"grouped": self.grouped})


def drawn(size: Size, tokens: int, seed: int, device: torch.device, dtype: torch.dtype) -> Inputs:
    """Return inputs, experts (K different ones for each token) and weights that add up to 1.

    Args:
        size: of the layer.
        tokens: T.
        seed: of the draws.
        device: where the results are.
        dtype: of the inputs.
    """
    draw = torch.Generator().manual_seed(seed)
    score_TK, index_TK = torch.rand(tokens, size.experts, generator=draw).topk(size.top_k)
    hidden_TD = torch.randn(tokens, size.hidden, generator=draw)
    return hidden_TD.to(device, dtype), index_TK.int().to(device), (score_TK / score_TK.sum(1, keepdim=True)).to(device)


def checked(name: str, held: Held, inputs: Inputs) -> dict[str, float]:
    """Return the relative distance of each way's output from the one of the loop in the wider type.

    Args:
        name: of what is measured, for the message.
        held: one form of the layer.
        inputs: hidden states, experts and weights.

    Raises:
        SystemExit: one is too large.
    """
    hidden_TD, index_TK, weights_TK = inputs
    wider, tolerance = WIDER[hidden_TD.dtype], TOLERANCE[hidden_TD.dtype]
    expected_TD = copy.deepcopy(held.loop).to(wider)(hidden_TD.to(wider), index_TK, weights_TK)
    errors = {}
    for way, module in held.ways().items():
        errors[way] = float((module(*inputs).to(wider) - expected_TD).norm() / expected_TD.norm())
        if not errors[way] <= tolerance:
            sys.exit(f"{name}, {way}: relative distance {errors[way]:.3g} from {wider}, allowed {tolerance:g}")
    return errors


def recorded(name: str, module: CompressedExperts, inputs: Inputs, others: Inputs) -> Call:
    """Return the replay of a CUDA graph of ``module`` on ``inputs``, which can be overwritten.

    Args:
        name: of what is measured, for the message.
        module: experts on a CUDA device.
        inputs: what the graph reads at each replay.
        others: inputs of the same shapes that it is tried with.

    Raises:
        SystemExit: the replay for ``others`` is not what the module gives for them.
    """
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        module(*inputs)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found_TD: Tensor = module(*inputs)

    def replay() -> Tensor:
        graph.replay()
        return found_TD

    own = [tensor.clone() for tensor in inputs]
    for values in (others, own):
        for tensor, value in zip(inputs, values, strict=True):
            tensor.copy_(value)
        expected_TD = module(*inputs)
        if not torch.equal(replay(), expected_TD):
            distance = float((found_TD.float() - expected_TD.float()).abs().max())
            sys.exit(f"{name}: the replayed graph differs from the eager output by up to {distance:.3g}")
    return replay


class Clock:
    """Times single calls, on a CPU in its seconds, on CUDA by events."""

    def __init__(self, device: torch.device) -> None:
        """Get the memory that is overwritten before each call on CUDA."""
        self._scratch = torch.empty(EVICTED, dtype=torch.uint8, device=device) if device.type == "cuda" else None

    def seconds(self, call: Call, way: str) -> float:
        """Return the time of ``call``: of a graph on the device alone, of another on CUDA from an idle device on."""
        if self._scratch is None:
            return _cpu_seconds(call)
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        self._scratch.zero_()  # the host records events and starts a graph meanwhile
        if way != "graph":
            torch.cuda.synchronize()
        begin.record()
        call()
        end.record()
        torch.cuda.synchronize()
        return float(begin.elapsed_time(end)) / 1000


def _cpu_seconds(call: Call) -> float:
    """Return CPU seconds of one call, averaged over as many as take ``LEAST_SECONDS``."""
    count, start = 0, time.process_time()
    while True:
        call()
        count += 1
        spent = time.process_time() - start
        if spent >= LEAST_SECONDS:
            return spent / count


@torch.no_grad()
def measured(name: str, held: Mapping[str, Held], tokens: int, turns: int, clock: Clock) -> list[Row]:
    """Return the rows of one size and one number of tokens; ``held`` has the forms, ``dense`` among them.

    Args:
        name: key in ``SIZES``.
        held: the layer in each form, ``dense`` among them.
        tokens: T.
        turns: rounds in which all are timed one after the other.
        clock: what times a call.
    """
    size, weight = SIZES[name], next(held["dense"].grouped.parameters())
    inputs, others = (drawn(size, tokens, seed, weight.device, weight.dtype) for seed in (0, 1))
    calls: dict[tuple[str, str], Call] = {}
    errors: dict[str, dict[str, float]] = {}
    for form, layer in held.items():
        what = f"{name}, {tokens} tokens, {form}"
        errors[form] = checked(what, layer, inputs)
        for way, module in layer.ways().items():
            calls[form, way] = _bound(module, inputs)
        if "grouped" in layer.ways() and without_host(weight):
            calls[form, "graph"] = recorded(what, layer.grouped, inputs, others)
    times: dict[tuple[str, str], list[float]] = {key: [] for key in calls}
    for turn in range(turns + 1):
        for key, call in calls.items():
            spent = clock.seconds(call, key[1])
            if turn:  # the first one warms up
                times[key].append(spent)
    rows_E = torch.bincount(inputs[1].flatten().cpu(), minlength=size.experts)
    dense_E = held["dense"].numel_E
    rows = []
    for form, layer in held.items():
        own = {way: spent for (which, way), spent in times.items() if which == form}
        beside = {way: times["dense", "graph" if way == "graph" else "grouped"] for way in own}
        rows.append(
            Row(
                size=name,
                tokens=tokens,
                form=form,
                seconds={way: statistics.median(spent) for way, spent in own.items()},
                ratios={
                    way: statistics.median(a / b for a, b in zip(beside[way], spent, strict=True))
                    for way, spent in own.items()
                },
                error=errors[form],
                bytes_ratio=int(dense_E[rows_E > 0].sum()) / int(layer.numel_E[rows_E > 0].sum()),
                flops_ratio=int((dense_E * rows_E).sum()) / int((layer.numel_E * rows_E).sum()),
                filled=layer.filled,
                looped_because=layer.looped_because,
            )
        )
    return rows


def _bound(module: CompressedExperts, inputs: Inputs) -> Call:
    def call() -> Tensor:
        out_TD: Tensor = module(*inputs)
        return out_TD

    return call


def table(name: str, rows: Sequence[Row], about: Mapping[str, str]) -> Table:
    """Return the table of one size.

    Args:
        name: key in ``SIZES``.
        rows: what was measured of it.
        about: device, versions and the like.
    """
    size = SIZES[name]
    ways = [way for way in ("loop", "grouped", "graph") if any(way in row.seconds for row in rows)]
    reasons = {f"{row.form}: looped over, {row.looped_because}" for row in rows if row.looped_because}
    shown = Table(
        title=f"{name}: D {size.hidden}, F {size.width}, E {size.experts}, K {size.top_k}; time of dense experts / time",
        caption="; ".join([", ".join(f"{key} {value}" for key, value in about.items()), *sorted(reasons)]),
    )
    for column in ("T", "experts", "us", *ways, "bytes", "FLOPs", "filled", "error"):
        shown.add_column(column, justify="left" if column == "experts" else "right")
    for before, row in zip([None, *rows], rows, strict=False):
        dense = "  ".join(f"{way} {row.seconds[way] * 1e6:.0f}" for way in ways) if row.form == "dense" else ""
        if before is not None and before.tokens != row.tokens:
            shown.add_section()
        shown.add_row(
            str(row.tokens),
            row.form,
            dense,
            *(f"{row.ratios[way]:.2f}" if way in row.ratios else "-" for way in ways),
            f"{row.bytes_ratio:.2f}",
            f"{row.flops_ratio:.2f}",
            f"{row.filled:.2f}",
            f"{max(row.error.values()):.1e}",
        )
    return shown


def environment(device: torch.device) -> dict[str, str]:
    """Return the device and versions."""
    what = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{processor()}, one thread"
    return {"device": what, "python": platform.python_version(), "torch": torch.__version__}


def main() -> None:
    """Measure, print a table for each size, and leave with status 1 if an output is wrong."""
    parser = argparse.ArgumentParser(prog="python -m bench.perf.experts", description=__doc__)
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--sizes", type=lambda text: text.split(","), help=f"some of {','.join(SIZES)}")
    parser.add_argument("--tokens", type=lambda text: [int(t) for t in text.split(",")], default=[1, 8, 64, 1024])
    parser.add_argument("--turns", type=int, help="measurements of each call (CUDA: 30, CPU: 5)")
    parser.add_argument("--json", type=Path, help="write the measurements as JSON")
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    cuda = device.type == "cuda"
    names = arguments.sizes or [name for name in SIZES if cuda or name in ON_CPU]
    if unknown := set(names) - set(SIZES):
        parser.error(f"no sizes named {', '.join(sorted(unknown))}; there are {', '.join(SIZES)}")
    if min(arguments.tokens) < 1:
        parser.error("--tokens must be at least 1")
    turns = arguments.turns or (30 if cuda else 5)
    torch.set_num_threads(1)
    about, clock, found = environment(device), Clock(device), []
    console = Console(width=None if sys.stdout.isatty() else 150)
    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("", total=len(names) * len(arguments.tokens))
        for name in names:
            dtype = torch.bfloat16 if cuda else torch.float32
            held = {form: Held(SIZES[name], stored, device, dtype) for form, stored in forms(SIZES[name]).items()}
            rows = []
            for tokens in arguments.tokens:
                progress.update(task, description=f"{name}, {tokens} tokens")
                rows += measured(name, held, tokens, turns, clock)
                progress.advance(task)
            console.print(table(name, rows, about))
            found += rows
            del held
    if arguments.json:
        write_json(arguments.json, {"environment": about, "measurements": [asdict(row) for row in found]})


if __name__ == "__main__":
    main()
