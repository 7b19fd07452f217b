"""Start-up guard: the four top-level names are generic, so check that each is ours and name the culprit otherwise."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from methods.framework.errors import MoebenchError

PACKAGES = ("analysis", "bench", "methods", "sweeps")
HOME = Path(__file__).resolve().parents[2]


def check_packages(home: Path = HOME) -> None:
    """Check that every top-level package of moebench is the one beside this file.

    Raises:
        MoebenchError: another distribution or folder shadows one of them.
    """
    for name in PACKAGES:
        spec = find_spec(name)
        found = Path(spec.origin).resolve().parents[1] if spec is not None and spec.origin else None
        if found != home:
            where = f"{found}" if found else "nowhere"
            raise MoebenchError(
                f"package {name!r} should come from {home}, but is found in {where}. Another distribution or a folder of "
                f"that name comes first on the Python path (`wandb[sweeps]` installs a package 'sweeps'): remove it, or "
                "install moebench in an environment of its own."
            )
