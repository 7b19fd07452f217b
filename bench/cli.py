"""The command line: the composition root. Each verb imports what it needs, so that ``--help`` stays instant."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from bench.guard import check_packages
from methods.errors import MoebenchError

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Benchmark compression methods for Mixture-of-Experts language models, from checkpoint to leaderboard.",
)

Model = Annotated[str, typer.Argument(help="folder of a checkpoint, hub id, or the name of a pocket model")]
StoreOption = Annotated[Path, typer.Option(help="folder of records and cached artefacts")]
Knobs = Annotated[list[str], typer.Option("--set", help="knob=value of the method; may be repeated")]
CorpusOption = Annotated[str, typer.Option(help="text file, datasets:NAME, pocket[:domain], or a file of token ids")]
Sequences = Annotated[int, typer.Option(help="calibration windows")]
Length = Annotated[int, typer.Option(help="tokens of a calibration window")]
DEFAULT_STORE = Path("runs")


def main() -> None:
    """Run the command line; an error of the user's making is one message without a traceback."""
    try:
        check_packages()
        app()
    except MoebenchError as error:
        _console(stderr=True).print(f"[bold red]error[/]: {error}", soft_wrap=True, highlight=False)
        sys.exit(1)
    except KeyboardInterrupt:
        _console(stderr=True).print("interrupted; the same command goes on from here")
        sys.exit(130)


def _console(stderr: bool = False) -> Any:
    from rich.console import Console

    return Console(stderr=stderr)


@contextmanager
def _bar(title: str) -> Iterator[Callable[[int, int], None]]:
    """Yield a function that draws done out of total."""
    from rich.progress import Progress

    with Progress(transient=True) as progress:
        task = progress.add_task(title, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)


def _open(model: str, revision: str | None = None) -> Any:
    from bench.checkpoint import Checkpoint

    return Checkpoint.open(model, revision)


def _method(name: str, knobs: list[str]) -> Any:
    from bench.config import parse_method

    return parse_method(f"{name}:{','.join(knobs)}").configured()


@app.command()
def methods() -> None:
    """List the methods with their knobs and sources."""
    from rich.table import Table

    from methods.registry import method_class, names

    table = Table("method", "what it is", "knobs and defaults", "source")
    for name in names():
        cls = method_class(name)
        knobs = ", ".join(f"{knob}={field.default}" for knob, field in cls.model_fields.items())
        table.add_row(name, (cls.__doc__ or "").split("\n")[0], knobs, cls.source)
    _console().print(table)


@app.command()
def inspect(model: Model, revision: str | None = None) -> None:
    """Show what a checkpoint contains and what it costs."""
    from dataclasses import asdict

    from rich.table import Table

    from methods.cost import cost_of

    checkpoint = _open(model, revision)
    inventory = checkpoint.inventory
    table = Table("layers", "sub-layer", "experts", "top-k", title=f"{checkpoint.name} ({inventory.family})")
    runs: list[list[Any]] = []
    for index, layer in enumerate(inventory.layers):
        shape = (layer.mlp, layer.experts, layer.top_k)
        if runs and runs[-1][1] == shape:
            runs[-1][0][1] = index
        else:
            runs.append([[index, index], shape])
    for (first, last), (mlp, experts, top_k) in runs:
        table.add_row(f"{first}" if first == last else f"{first}-{last}", mlp, str(experts), str(top_k))
    _console().print(table)
    _console().print(inventory.router)
    for name, value in asdict(cost_of(inventory)).items():
        _console().print(f"{name:>18}  {value:,}")


@app.command()
def calibrate(
    model: Model,
    needs: Annotated[str, typer.Option(help="statistics, separated by commas; 'all' for the whole catalogue")] = "all",
    corpus: CorpusOption = "pocket",
    sequences: Sequences = 128,
    length: Length = 2048,
    seed: int = 0,
    store: StoreOption = DEFAULT_STORE,
) -> None:
    """Measure statistics in one pass and keep them in the store."""
    from bench.calibrate import calibrate as measure
    from bench.corpus import parse
    from bench.store import Store
    from methods.stats import CATALOGUE

    checkpoint = _open(model)
    names = set(CATALOGUE) if needs == "all" else set(needs.split(","))
    with _bar("calibrate") as progress:
        text = parse(corpus, checkpoint, sequences, length, seed)
        stats = measure(checkpoint, text, names, cache=Store(store).cache / "stats", progress=progress)
    _console().print(f"{', '.join(sorted(stats.values))}: measured on {stats.tokens:,} tokens of {text.name}")


@app.command()
def plan(
    model: Model,
    method: Annotated[str, typer.Argument(help="name of a method; see `moebench methods`")],
    out: Annotated[Path, typer.Option(help="file to write the plan to")] = Path("plan.json"),
    knobs: Knobs = [],  # noqa: B006  # typer reads it, nobody changes it
    corpus: CorpusOption = "pocket",
    sequences: Sequences = 128,
    length: Length = 2048,
    seed: int = 0,
    propagation: str = "one_shot",
    store: StoreOption = DEFAULT_STORE,
) -> None:
    """Let a method decide, and write its plan."""
    from bench.config import CalibrationConfig
    from bench.stages import Calibrator
    from bench.store import Store, write_json
    from bench.strict import validated

    configured = _method(method, knobs)
    checkpoint = _open(model)
    settings = {"corpus": corpus, "sequences": sequences, "length": length, "seed": seed, "propagation": propagation}
    config = validated(settings, CalibrationConfig, "calibration")
    calibrator = Calibrator(checkpoint, config, Store(store), configured.measured)
    with _bar("calibrate") as progress:
        stats = calibrator.stats_for(configured, progress)
    decided = configured.plan(checkpoint.inventory, stats, calibrator.probe_for(configured))
    provenance = {"method": method, "knobs": configured.knobs, "model": checkpoint.name}
    write_json(out, {**decided.document(), "provenance": provenance})
    _console().print(f"{out}: plan {decided.digest[:12]}, stages {', '.join(sorted(decided.stages)) or 'none'}")
    _print_cost(checkpoint, decided)


@app.command()
def cost(model: Model, plan_file: Path) -> None:
    """Show what a plan's checkpoint costs, beside the source."""
    _print_cost(_open(model), _read_plan(plan_file))


def _read_plan(path: Path) -> Any:
    from methods.errors import PlanError
    from methods.plan import Plan

    try:
        return Plan.loads(path.read_bytes())
    except OSError as error:
        raise PlanError(f"cannot read {path}: {error.strerror}") from error


def _print_cost(checkpoint: Any, plan: Any) -> None:
    from dataclasses import asdict

    from rich.table import Table

    from methods import cost as costs

    plan = plan.normalised(checkpoint.inventory)
    before, after = costs.cost_of(checkpoint.inventory), costs.cost(plan, checkpoint.inventory)
    table = Table("quantity", "source", "compressed", "removed")
    for name, value in asdict(before).items():
        own = getattr(after, name)
        table.add_row(name, f"{value:,}", f"{own:,}", f"{1 - own / value:.1%}" if value else "")
    _console().print(table)


@app.command()
def apply(
    model: Model,
    plan_file: Path,
    out: Path,
    corpus: CorpusOption = "pocket",
    sequences: Sequences = 128,
    length: Length = 2048,
    seed: int = 0,
    store: StoreOption = DEFAULT_STORE,
) -> None:
    """Write the compressed checkpoint of a plan.

    The corpus options matter only for plans that write statistics into the checkpoint (constant experts).
    """
    from bench.apply import apply as write
    from bench.calibrate import calibrate as measure
    from bench.corpus import parse
    from bench.store import Store

    checkpoint, decided = _open(model), _read_plan(plan_file)
    moments = None
    if decided.moments:
        text = parse(corpus, checkpoint, sequences, length, seed)
        with _bar("calibrate") as progress:
            moments = measure(checkpoint, text, decided.moments, cache=Store(store).cache / "stats", progress=progress)
    with _bar("apply") as progress:
        path = write(checkpoint, decided, out, progress=progress, moments=moments)
    _console().print(f"wrote {path}")


@app.command()
def time(
    base: Path,
    compressed: list[Path],
    repeats: int = 5,
    batch: int = 4,
    prompt: int = 128,
    generate: int = 32,
    dtype: str = "auto",
    threads: Annotated[int | None, typer.Option(help="OpenMP threads of the server")] = None,
    residency: Annotated[str, typer.Option(help="both, or one: a fresh process for each repeat")] = "both",
) -> None:
    """Time checkpoints under vLLM against a base, in alternation."""
    from rich.table import Table

    from bench.config import TimingConfig
    from bench.serving.protocol import TimingProtocol
    from bench.strict import validated
    from bench.timing import TimingSession

    given = {"repeats": repeats, "batch": batch, "prompt": prompt, "generate": generate, "dtype": dtype}
    config = validated({**given, "threads": threads, "residency": residency}, TimingConfig, "options")
    table = Table("checkpoint", "prefill tokens/s", "decode tokens/s", "prefill / base", "decode / base", "remark")

    def row(path: Path, timing: Any) -> None:
        intervals = (timing.prefill, timing.decode, timing.prefill_ratio, timing.decode_ratio)
        cells = [f"{one.median:.4g} [{one.low:.4g}, {one.high:.4g}]" if one else "" for one in intervals]
        table.add_row(str(path), *cells, timing.reason or ("noisy" if timing.protocol.get("noisy") else ""))

    with TimingSession(TimingProtocol(**config.model_dump(exclude={"enabled"})), logs=Path("logs")) as session:
        for index, path in enumerate(compressed):
            first, own = session.time(base, path)
            if index == 0:
                row(base, first)
            row(path, own)
    _console().print(table)


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def serve(context: typer.Context, model: Model) -> None:
    """Serve a checkpoint with vLLM; everything after the model goes to `vllm serve`."""
    from bench.serving.serve import serve as become_server

    become_server(model, context.args)


@app.command()
def run(
    model: Annotated[str | None, typer.Option(help="folder, hub id or pocket model")] = None,
    method: Annotated[list[str], typer.Option(help="name[:knob=value,...]; may be repeated")] = [],  # noqa: B006  # typer reads it
    keep: Annotated[list[float], typer.Option(help="every method at every share; may be repeated")] = [],  # noqa: B006  # as above
    config: Annotated[Path | None, typer.Option(help="YAML file of settings; options given here win")] = None,
    revision: str | None = None,
    corpus: Annotated[str | None, typer.Option(help="calibration corpus")] = None,
    sequences: int | None = None,
    length: int | None = None,
    seed: Annotated[int | None, typer.Option(help="seed of the calibration windows")] = None,
    propagation: str | None = None,
    tasks: Annotated[str | None, typer.Option(help="lm-eval tasks, separated by commas")] = None,
    include_path: Annotated[Path | None, typer.Option(help="folder of local task files")] = None,
    limit: int | None = None,
    num_fewshot: int | None = None,
    max_length: int | None = None,
    batch_size: int | None = None,
    dtype: Annotated[str | None, typer.Option(help="compute type of the evaluation")] = None,
    device: str | None = None,
    timing: Annotated[bool | None, typer.Option("--time/--no-time", help="time under vLLM")] = None,
    group: str | None = None,
    store: StoreOption = DEFAULT_STORE,
    track: Annotated[str | None, typer.Option(help="W&B: offline, online or disabled")] = None,
) -> None:
    """Compress one model by several methods; evaluate, time, record and track each."""
    from bench.config import RunConfig, expand, parse_method
    from bench.live import run_with_table
    from bench.strict import read_settings, validated

    document = read_settings(config) if config else {}
    flat = {"model": model, "revision": revision, "group": group}
    parts: dict[str, dict[str, Any]] = {
        "calibration": {
            "corpus": corpus,
            "sequences": sequences,
            "length": length,
            "seed": seed,
            "propagation": propagation,
        },
        "evaluation": {
            "tasks": tasks.split(",") if tasks else None,
            "include_path": include_path,
            "limit": limit,
            "num_fewshot": num_fewshot,
            "max_length": max_length,
            "batch_size": batch_size,
            "dtype": dtype,
            "device": device,
        },
        "timing": {"enabled": timing},
    }
    document |= {name: value for name, value in flat.items() if value is not None}
    for part, values in parts.items():
        given = {name: value for name, value in values.items() if value is not None}
        if given:
            document[part] = {**document.get(part, {}), **given}
    if method:
        document["methods"] = [one.model_dump() for one in expand([parse_method(text) for text in method], keep)]
    run_with_table([validated(document, RunConfig, str(config or "options"))], store, track)


@app.command()
def demo(
    store: StoreOption = Path("runs/demo"),
    track: Annotated[str | None, typer.Option(help="W&B: offline, online or disabled")] = None,
) -> None:
    """Compare pruning and dropping methods on the three embedded models, from checkpoint to leaderboard."""
    from bench.demo import run_demo

    run_demo(store, track)


@app.command()
def sweep(
    file: Annotated[Path, typer.Argument(help="YAML file of the study")],
    store: StoreOption = DEFAULT_STORE,
) -> None:
    """Search a method's knobs under a size budget with Optuna; goes on where it stopped."""
    from sweeps.launch import run_from_command_line

    run_from_command_line(file, store)


@app.command()
def grid(
    file: Annotated[Path, typer.Argument(help="YAML file of models, methods, shares, corpora and seeds")],
    store: Annotated[Path | None, typer.Option(help="instead of the file's")] = None,
    workers: Annotated[int | None, typer.Option(help="processes, instead of the file's")] = None,
    report: Annotated[Path | None, typer.Option(help="folder to write the study's page and figures to")] = None,
    track: Annotated[str | None, typer.Option(help="W&B: offline, online or disabled")] = None,
) -> None:
    """Run every model by every method, share, corpus and seed; goes on where it stopped."""
    from bench.strict import validated
    from sweeps.grid_config import GridConfig, load_grid
    from sweeps.grid_terminal import show_grid

    given = {"store": store, "workers": workers}
    document = load_grid(file).model_dump() | {name: value for name, value in given.items() if value is not None}
    result = show_grid(validated(document, GridConfig, str(file)), track, _console())
    if report is not None:
        from analysis.study import study_page

        _console().print(study_page(result.records, report).page, soft_wrap=True)
    if result.counts["failed"] or result.counts["cancelled"]:
        raise typer.Exit(1)


@app.command()
def report(
    stores: Annotated[list[Path], typer.Argument(help="stores, or folders of records")],
    out: Annotated[Path, typer.Option(help="folder to write to")] = Path("report"),
    title: str = "moebench leaderboard",
    floor: Annotated[float, typer.Option(help="recovery below which a row is marked")] = 0.9,
) -> None:
    """Write leaderboard, tables and figures from records."""
    from analysis.report import report as write

    folders = [path / "records" if (path / "records").is_dir() else path for path in stores]
    written = write(folders, out, title=title, floor=floor)
    for message in written.messages:
        _console().print(message)
    for path in (written.page, written.markdown, written.csv, written.scores, written.latex):
        _console().print(path, soft_wrap=True)
    if written.figures:
        _console().print(written.figures[0].parent, soft_wrap=True)


@app.command()
def check(
    method: Annotated[str, typer.Argument(help="name of a method, also of another distribution")],
    family: Annotated[list[str], typer.Option(help="only this architecture; may be repeated")] = [],  # noqa: B006  # typer reads it
) -> None:
    """Run the laws of a method on every tiny architecture."""
    from rich.table import Table

    from bench.laws import check as laws

    marks = {"passed": "[green]passed[/]", "refused": "[yellow]refused[/]", "failed": "[bold red]failed[/]"}
    table = Table("law", "title", "architecture", "outcome", "detail")
    failed = 0
    for outcome in laws(method, tuple(family)):
        failed += outcome.status == "failed"
        table.add_row(str(outcome.law), outcome.title, outcome.family, marks[outcome.status], outcome.detail)
    _console().print(table)
    _console().print(f"{failed} laws broken" if failed else f"{method} obeys every law")
    if failed:
        raise typer.Exit(1)


if __name__ == "__main__":
    main()
