"""``moebench serve``: vLLM's server on a checkpoint."""

from __future__ import annotations

import typer

from bench.commands.options import Model


def serve(context: typer.Context, model: Model) -> None:
    """Become the server; arguments that are not ours are vLLM's."""
    from bench.serving.serve import serve as become_server

    become_server(model, context.args)
