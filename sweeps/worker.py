"""One worker of a sweep: ``python -m sweeps.worker CONFIG --store FOLDER --worker N``."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from methods.framework.errors import MoebenchError
from sweeps.executor import interrupt
from sweeps.journal import open_study
from sweeps.outcome import outcome
from sweeps.storages import answering
from sweeps.sweep_config import load_sweep
from sweeps.tally import Tally
from sweeps.task_guard import check_objectives
from sweeps.trials import work


def main(arguments: Sequence[str] | None = None) -> int:
    """Be one worker."""
    parser = argparse.ArgumentParser(prog="python -m sweeps.worker", description="One worker of a sweep.")
    parser.add_argument("config", type=Path, help="config.json of the sweep, or the sweep's own file")
    parser.add_argument("--store", type=Path, required=True, help="folder of the store")
    parser.add_argument("--worker", type=int, default=0, help="number of this worker; workers draw different trials")
    options = parser.parse_args(arguments)
    try:
        config = load_sweep(options.config)
        check_objectives(config)
        study = open_study(config, config.folder(options.store))
        with answering(config.storage):
            try:
                advance = Tally(config.folder(options.store), options.worker)
                work(config, study, store=options.store, worker=options.worker, advance=advance)
            finally:
                outcome(config, study, options.store)
    except MoebenchError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    for request in (signal.SIGTERM, signal.SIGINT):  # a shell's background jobs are started with the second ignored
        signal.signal(request, interrupt)
    sys.exit(main())
