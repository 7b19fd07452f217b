"""What libraries warn of goes to a file in the store: nobody who runs a verb can act on it, and it would write across tables."""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console

OURS = ("analysis", "bench", "methods", "sweeps", "moebench", "__main__")
"""Packages and loggers whose warnings a user gets to see."""
NAME = "libraries.log"
"""File in the store's folder of logs."""
_TALKERS = ("transformers", "optuna", "huggingface_hub", "datasets")
"""Libraries whose loggers have a way to the terminal of their own."""


class LibraryLog(logging.Handler):
    """Writes what libraries say to a file, which is there once there is something, and shows what our own code says."""

    def __init__(self, path: Path, console: Console) -> None:
        """Write nothing yet.

        Args:
            path: of the file, which grows from run to run.
            console: where our own warnings are shown.
        """
        super().__init__(logging.WARNING)
        self.path, self.count, self._console = path, 0, console
        self.setFormatter(logging.Formatter("%(asctime)s %(name)s %(levelname)s: %(message)s"))

    def emit(self, record: logging.LogRecord) -> None:
        """Write or show one message."""
        if _is_ours(record.name):
            self._show(record.getMessage())
            return
        try:
            self._write(self.format(record))
        except Exception:  # as any handler: what is logged must not end what is done
            self.handleError(record)

    def show_warning(
        self,
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: object = None,
        line: str | None = None,
    ) -> None:
        """Write or show one warning, as ``warnings.showwarning`` is called.

        Args:
            message: the warning.
            category: its class; those of ours are shown wherever they come from.
            filename: of the code that warns.
            lineno: line in it.
            file: not used.
            line: not used.
        """
        if _is_ours(category.__module__):
            self._show(str(message))
        else:
            self._write(f"{filename}:{lineno}: {category.__name__}: {message}")

    def _show(self, text: str) -> None:
        self._console.print(text, style="yellow", markup=False, highlight=False, soft_wrap=True)

    def _write(self, text: str) -> None:
        self.count += 1
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a") as file:
            file.write(text + "\n")

    def place(self) -> dict[str, Path]:
        """Return the file by the name under which an ending lists it; nothing where nothing was written."""
        return {"log": self.path} if self.count else {}


@contextmanager
def library_log(store: Path, console: Console) -> Iterator[LibraryLog]:
    """Send warnings and messages of libraries to the store's logs while the block runs.

    Args:
        store: folder of the store.
        console: where our own warnings are shown.
    """
    log = LibraryLog(store / "logs" / NAME, console)
    root = logging.getLogger()
    with ExitStack() as undo:
        undo.enter_context(warnings.catch_warnings())
        warnings.showwarning = log.show_warning
        root.addHandler(log)
        undo.callback(root.removeHandler, log)
        for name in _TALKERS:
            undo.callback(_restore, *_silence(logging.getLogger(name)))
        _calm_transformers()
        yield log


def _silence(logger: logging.Logger) -> tuple[logging.Logger, list[logging.Handler], bool]:
    """Take the logger's own handlers away, so that the root's alone gets what it says."""
    kept = (logger, list(logger.handlers), logger.propagate)
    logger.handlers, logger.propagate = [], True
    return kept


def _restore(logger: logging.Logger, handlers: list[logging.Handler], propagate: bool) -> None:
    logger.handlers, logger.propagate = handlers, propagate


def _calm_transformers() -> None:
    """Switch progress bars of transformers off, where it is loaded: they would write across the table."""
    module: Any = sys.modules.get("transformers")
    if module is not None:
        module.logging.disable_progress_bar()


def _is_ours(name: str) -> bool:
    return name.partition(".")[0] in OURS
