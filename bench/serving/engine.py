"""What an engine is: whatever runs a checkpoint, and says beforehand what it can run, in which form, and how it is started.

An engine costs one file in ``bench/serving/engines`` that offers ``ENGINE``; its file's name, with hyphens, is its name. Other
distributions add theirs through the entry-point group ``moebench.engines``.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import bench.serving.engines
from bench.serving.target import Verdict
from bench.settings.timing_settings import OnlineProtocol
from methods.framework.errors import ConfigError, TimingError, UnknownNameError
from methods.framework.inventory import Inventory
from methods.framework.offers import offered, offered_names
from methods.framework.plan import Plan

ENTRY_POINT_GROUP = "moebench.engines"


class Engine:
    """An engine that can do nothing, and says why; a real one overrides what it can."""

    name: str
    """As settings call it."""
    cannot: str
    """Why it cannot do what it does not override."""
    distributions: tuple[str, ...] = ()
    """What it may be installed as; the first one that is found tells its version."""
    few_bits: bool = False
    """Whether it computes with experts in few bits as they are stored, not with the values that they stand for."""
    worker: ClassVar[str | None] = None
    """Module of its worker processes, with ``preload`` and ``VERBS`` (see ``bench.serving.processes``); None: it has none."""

    def missing(self) -> str | None:
        """Return why it cannot be started on this machine, or None."""
        return self.cannot

    def refuses(self, path: Path) -> str | None:
        """Return why it cannot serve the checkpoint at ``path``, or None; reads only small files.

        Raises:
            CheckpointError: there is no readable ``config.json``.
        """
        return self.cannot

    def verdict(self, plan: Plan, inventory: Inventory) -> Verdict:
        """Return what is known about running what ``plan`` makes of ``inventory``.

        Raises:
            PlanError: the plan does not fit.
        """
        return Verdict("refused", self.cannot)

    def realisation(self, path: Path) -> Literal["compressed", "dense"]:
        """Return whether it computes with what the checkpoint at ``path`` stores, or with whole matrices in its place.

        Raises:
            CheckpointError: there is no readable ``config.json``.
        """
        return "compressed"

    def untimed(self, path: Path) -> str | None:
        """Return why no speed is claimed for the checkpoint at ``path`` although it is served, or None."""
        return None

    def options(self, path: Path, dtype: str) -> dict[str, Any]:
        """Return options without which the checkpoint at ``path`` is served wrongly, slowly or not at all.

        Args:
            path: checkpoint folder.
            dtype: compute type as given to the engine.
        """
        return {}

    def server_command(self, path: Path, arguments: Sequence[str], cores: tuple[int, ...] = ()) -> list[str]:
        """Return the command line of its server for the checkpoint at ``path``.

        Args:
            path: checkpoint folder.
            arguments: further arguments of the server; they win over ours.
            cores: processor cores that the server is bound to, none to leave it free.

        Raises:
            TimingError: it has no server.
        """
        raise TimingError(f"{self.name} has no server: {self.cannot}")

    def server_arguments(self, protocol: OnlineProtocol, port: int) -> list[str]:
        """Return the arguments of a server that is timed, the same for all models but for the port.

        Args:
            protocol: lengths, limits and seed.
            port: of this machine that it listens on.

        Raises:
            TimingError: it has no server.
        """
        raise TimingError(f"{self.name} has no server: {self.cannot}")


def engine_names() -> list[str]:
    """Return the names of all engines, built in first, then those of other distributions."""
    return offered_names(_built_in(), ENTRY_POINT_GROUP)


def engine_named(name: str) -> Engine:
    """Return the engine called ``name``.

    Raises:
        UnknownNameError: there is none; the closest name is given.
        ConfigError: a file or a plug-in does not offer an ``Engine`` of that name.
    """
    found = offered(name, _built_in(), ENTRY_POINT_GROUP)
    if found is None:
        raise UnknownNameError("engine", name, engine_names())
    loaded, where = found
    if not isinstance(loaded, Engine) or loaded.name != name:
        raise ConfigError(f"{where} gives {loaded!r}, which is not a bench.serving.engine.Engine called {name!r}")
    return loaded


def engine_here() -> Engine:
    """Return vLLM on the device at hand, which is used where no engine is named."""
    import torch

    return engine_named("vllm-gpu" if torch.cuda.is_available() else "vllm-cpu")


def _built_in() -> dict[str, str]:
    """Return where the folder's engines stand, by their names."""
    package = bench.serving.engines
    stems = [module.name for module in pkgutil.iter_modules(package.__path__)]
    return {stem.replace("_", "-"): f"{package.__name__}.{stem}:ENGINE" for stem in stems}
