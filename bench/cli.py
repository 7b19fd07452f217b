"""The command line: the composition root. Each verb imports what it needs, so that ``--help`` stays instant."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from bench.commands.guard import check_packages
from bench.commands.parts import DEFAULT_STORE, Model, StoreOption, console, open_checkpoint
from bench.commands.stage_commands import stages
from methods.framework.errors import MoebenchError

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Benchmark compression methods for Mixture-of-Experts language models, from checkpoint to leaderboard.",
)
app.add_typer(stages)


def main() -> None:
    """Run the command line; an error of the user's making is one message without a traceback."""
    try:
        check_packages()
        app()
    except MoebenchError as error:
        console(stderr=True).print(f"[bold red]error[/]: {error}", soft_wrap=True, highlight=False)
        sys.exit(1)
    except KeyboardInterrupt:
        console(stderr=True).print("interrupted; the same command goes on from here")
        sys.exit(130)


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
    console().print(table)


@app.command()
def inspect(model: Model, revision: str | None = None) -> None:
    """Show what a checkpoint contains and what it costs."""
    from dataclasses import asdict

    from rich.table import Table

    from methods.framework.cost import cost_of

    checkpoint = open_checkpoint(model, revision)
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
    console().print(table)
    console().print(inventory.router)
    for name, value in asdict(cost_of(inventory)).items():
        console().print(f"{name:>18}  {value:,}")


@app.command()
def time(
    base: Model,
    compressed: Annotated[list[str], typer.Argument(help="likewise; each is timed in alternation with the base")],
    batch: Annotated[list[int], typer.Option(help="sequences at once; may be repeated")] = [],  # noqa: B006  # typer reads it
    online: Annotated[bool, typer.Option("--online", help="time servers under load by `vllm bench serve`")] = False,
    rate: Annotated[list[float], typer.Option(help="online: requests per second, or inf; may be repeated")] = [],  # noqa: B006  # as above
    requests: Annotated[int | None, typer.Option(help="online: requests of each run")] = None,
    repeats: Annotated[int | None, typer.Option(help="alternations, at least 5")] = None,
    rounds: Annotated[int | None, typer.Option(help="batches summed into one repeat; more for tiny models")] = None,
    prompt: Annotated[int | None, typer.Option(help="tokens of each prompt")] = None,
    generate: Annotated[int | None, typer.Option(help="tokens generated for each prompt")] = None,
    dtype: Annotated[str | None, typer.Option(help="compute type")] = None,
    threads: Annotated[int | None, typer.Option(help="OpenMP threads, bound to as many cores")] = None,
    residency: Annotated[str | None, typer.Option(help="both, or one: a fresh process for each repeat")] = None,
    kv_cache_bytes: Annotated[int | None, typer.Option(help="of each model; 256 MiB where not given")] = None,
    out: Annotated[Path | None, typer.Option(help="JSON file for all numbers")] = None,
) -> None:
    """Time checkpoints under vLLM against a base, in alternation."""
    from bench.commands.time_command import time_models
    from bench.timing.table import memory_table, offline_table, online_table, write_timings

    settings = {"repeats": repeats, "rounds": rounds, "prompt": prompt, "generate": generate, "dtype": dtype}
    rows = time_models(
        base,
        compressed,
        {**settings, "threads": threads, "residency": residency, "kv_cache_bytes": kv_cache_bytes},
        batches=batch,
        rates=rate,
        requests=requests,
        online=online,
        report=lambda text: console(stderr=True).print(text, soft_wrap=True, highlight=False),
    )
    if out is not None:
        write_timings(rows, out)
    console().print((online_table if online else offline_table)(rows))
    console().print(memory_table(rows))


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
    recipe: Annotated[list[Path], typer.Option(help="YAML file of methods applied as one; may be repeated")] = [],  # noqa: B006  # as above
    config: Annotated[Path | None, typer.Option(help="YAML file of settings; options given here win")] = None,
    revision: str | None = None,
    corpus: Annotated[str | None, typer.Option(help="calibration corpus")] = None,
    sequences: int | None = None,
    length: int | None = None,
    seed: Annotated[int | None, typer.Option(help="seed of the calibration windows")] = None,
    propagation: str | None = None,
    tasks: Annotated[
        str | None, typer.Option(help="lm-eval tasks, separated by commas; pocket: all of its language")
    ] = None,
    include_path: Annotated[Path | None, typer.Option(help="folder of local task files")] = None,
    limit: int | None = None,
    num_fewshot: int | None = None,
    max_length: int | None = None,
    batch_size: int | None = None,
    dtype: Annotated[str | None, typer.Option(help="compute type of the evaluation")] = None,
    device: str | None = None,
    timing: Annotated[bool | None, typer.Option("--time/--no-time", help="time under vLLM")] = None,
    target: Annotated[
        str | None, typer.Option(help="refuse what vllm-cpu, vllm-gpu or transformers cannot run")
    ] = None,
    recovery: Annotated[str | None, typer.Option(help="train each result: a kind, or a YAML file of settings")] = None,
    group: str | None = None,
    store: StoreOption = DEFAULT_STORE,
    track: Annotated[str | None, typer.Option(help="W&B: offline, online or disabled")] = None,
) -> None:
    """Compress one model by several methods; evaluate, time, record and track each."""
    from bench.commands.live import run_with_table
    from bench.settings.run_settings import RunConfig, expand, parse_method
    from bench.settings.strict import read_settings, validated

    document = read_settings(config) if config else {}
    flat = {"model": model, "revision": revision, "group": group, "target": target}
    parts: dict[str, dict[str, Any]] = {
        "calibration": {
            "corpus": corpus,
            "sequences": sequences,
            "length": length,
            "seed": seed,
            "propagation": propagation,
            "device": device,
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
    if recovery:
        document["recovery"] = read_settings(Path(recovery)) if Path(recovery).exists() else {"kind": recovery}
    if recipe:
        document["recipes"] = [read_settings(path) for path in recipe]
    run_with_table([validated(document, RunConfig, str(config or "options"))], store, track)


@app.command()
def recover(
    model: Model,
    kind: Annotated[str | None, typer.Option(help="lora, full, router_kd or expert_kd")] = None,
    config: Annotated[Path | None, typer.Option(help="YAML file of settings; options given here win")] = None,
    teacher: Annotated[str | None, typer.Option(help="the uncompressed model, for the two distillations")] = None,
    corpus: Annotated[str | None, typer.Option(help="text file, datasets:NAME, pocket[:domain]")] = None,
    sequences: Annotated[int | None, typer.Option(help="windows of the text")] = None,
    length: Annotated[int | None, typer.Option(help="tokens in a window")] = None,
    epochs: Annotated[int | None, typer.Option(help="passes over the windows")] = None,
    steps: Annotated[int | None, typer.Option(help="steps of the optimiser, instead of epochs")] = None,
    batch: Annotated[int | None, typer.Option(help="windows in a step")] = None,
    rate: Annotated[float | None, typer.Option(help="highest learning rate")] = None,
    experts: Annotated[bool | None, typer.Option("--experts/--no-experts", help="whether experts are trained")] = None,
    seed: int | None = None,
    store: StoreOption = DEFAULT_STORE,
) -> None:
    """Train a compressed checkpoint on text; goes on where it stopped."""
    from bench.commands.recover_command import recover_from_command_line

    given: dict[str, Any] = {
        "kind": kind,
        "corpus": corpus,
        "sequences": sequences,
        "length": length,
        "epochs": epochs,
        "steps": steps,
    }
    given |= {"batch": batch, "rate": rate, "experts": experts, "seed": seed}
    recover_from_command_line(model, given, config=config, teacher=teacher, store=store)


@app.command()
def demo(
    store: StoreOption = Path("runs/demo"),
    track: Annotated[str | None, typer.Option(help="W&B: offline, online or disabled")] = None,
) -> None:
    """Compare pruning and dropping methods on the three embedded models, from checkpoint to leaderboard."""
    from bench.commands.demo import run_demo

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
    from bench.settings.strict import validated
    from sweeps.grid_config import GridConfig, load_grid
    from sweeps.grid_terminal import show_grid

    given = {"store": store, "workers": workers}
    document = load_grid(file).model_dump() | {name: value for name, value in given.items() if value is not None}
    result = show_grid(validated(document, GridConfig, str(file)), track, console())
    if report is not None:
        from analysis.study import study_page

        console().print(study_page(result.records, report).page, soft_wrap=True)
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
        console().print(message)
    for path in (written.page, written.markdown, written.csv, written.scores, written.latex):
        console().print(path, soft_wrap=True)
    if written.figures:
        console().print(written.figures[0].parent, soft_wrap=True)


@app.command()
def check(
    method: Annotated[str, typer.Argument(help="name of a method, also of another distribution")],
    family: Annotated[list[str], typer.Option(help="only this architecture; may be repeated")] = [],  # noqa: B006  # typer reads it
    full: Annotated[
        bool, typer.Option("--full", help="all steps of a method that searches long, which takes minutes")
    ] = False,
) -> None:
    """Run the laws of a method on every tiny architecture."""
    from rich.table import Table

    from bench.laws import check as laws

    marks = {"passed": "[green]passed[/]", "refused": "[yellow]refused[/]", "failed": "[bold red]failed[/]"}
    table = Table("law", "title", "architecture", "outcome", "detail")
    failed = 0
    for outcome in laws(method, tuple(family), full):
        failed += outcome.status == "failed"
        table.add_row(str(outcome.law), outcome.title, outcome.family, marks[outcome.status], outcome.detail)
    console().print(table)
    console().print(f"{failed} laws broken" if failed else f"{method} obeys every law")
    if failed:
        raise typer.Exit(1)


if __name__ == "__main__":
    main()
