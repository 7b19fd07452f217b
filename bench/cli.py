"""The command line: the composition root. Each verb's file is imported when it is called, so that ``--help`` stays instant."""

from __future__ import annotations

import os
import sys

from rich.console import Console
from rich.markup import escape
from typer.core import TyperGroup
from typer.main import get_install_completion_arguments

from bench.commands.guard import check_packages
from bench.commands.verb import Verb
from methods.framework.errors import MoebenchError

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

VERBS = (
    Verb("methods", "List the methods, or show one in full."),
    Verb("inspect", "Show what a checkpoint contains and what it costs."),
    Verb("time", "Time checkpoints under vLLM against a base, in alternation."),
    Verb("serve", "Serve a checkpoint with vLLM; everything after the model goes to `vllm serve`.", passes_on=True),
    Verb("run", "Compress one model by several methods; evaluate, time, record and track each."),
    Verb("recover", "Train a compressed checkpoint on text; goes on where it stopped."),
    Verb("demo", "Compare pruning and dropping methods on the three embedded models, from checkpoint to leaderboard."),
    Verb("sweep", "Search a method's knobs under a size budget with Optuna; goes on where it stopped."),
    Verb("solve", "Solve a sweep's table: the best plans within any budget, and the frontier."),
    Verb("promote", "Run the front of a sweep: write, evaluate, time, record and track its plans."),
    Verb("grid", "Run every model by every method, share, corpus and seed; goes on where it stopped."),
    Verb("track", "Mirror the records of a store to W&B, as far as that was not done."),
    Verb("push", "Send a written checkpoint to the hub, private unless told otherwise."),
    Verb("status", "List the records of a store, and why some failed."),
    Verb("show", "Show one record in full: scores, speed, plan, and the command that makes it again."),
    Verb("compare", "Compare two records, item by item."),
    Verb("report", "Write leaderboard, tables and figures from records."),
    Verb("papers", "List the papers whose tables and figures can be made, and what each costs."),
    Verb(
        "paper", "Make a table or figure of a paper: run or resume its rows, and lay it out beside the printed numbers."
    ),
    Verb("check", "Run the laws of a method on every tiny architecture."),
    Verb("calibrate", "Measure statistics in one pass and keep them in the store."),
    Verb("plan", "Let a method decide, and write its plan."),
    Verb("cost", "Show what a plan's checkpoint costs, beside the source."),
    Verb(
        "apply",
        "Write the compressed checkpoint of a plan.\n\nThe corpus options matter only for plans whose values depend on "
        "statistics: constants, and kernels that read moments.",
    ),
)

app = TyperGroup(
    name="moebench",
    commands=VERBS,
    params=list(get_install_completion_arguments()),
    no_args_is_help=True,
    help="Benchmark compression methods for Mixture-of-Experts language models, from checkpoint to leaderboard.",
)


def main() -> None:
    """Run the command line; an error of the user's making is one message without a traceback."""
    try:
        check_packages()
        app(prog_name="moebench")  # also under `python -m`, whose own name would switch completion off
    except MoebenchError as error:
        Console(stderr=True).print("[bold red]error[/]:", escape(str(error)), soft_wrap=True, highlight=False)
        sys.exit(1)
    except OSError as error:
        # A store that cannot be written to, a name that no file can have: the disk's reason is the message.
        if error.filename is None:
            raise
        message = f"cannot use {str(error.filename)[:200]}: {error.strerror}; name another file or folder"
        Console(stderr=True).print("[bold red]error[/]:", escape(message), soft_wrap=True, highlight=False)
        sys.exit(1)
    except KeyboardInterrupt:
        Console(stderr=True).print("interrupted; the same command goes on from here")
        sys.exit(130)


if __name__ == "__main__":
    main()
