"""``moebench serve``: vLLM's server on a checkpoint."""

from __future__ import annotations

import typer

from bench.checkpoint.source import at_revision
from bench.commands.options import Model, RevisionOption


def serve(context: typer.Context, model: Model, revision: RevisionOption = None) -> None:
    """Become the server; arguments that are not ours are vLLM's."""
    from bench.serving.serve import serve as become_server

    become_server(at_revision(model, revision), context.args)
