"""What the command line imports before there is any work for it."""

import subprocess
import sys

HEAVY = ("torch", "transformers", "vllm", "lm_eval", "datasets", "optuna", "scipy", "pandas")


def test_asking_for_help_methods_and_records_loads_nothing_heavy() -> None:
    code = f"""
import sys
import bench.cli, bench.commands.methods_command, bench.commands.run_command, bench.commands.status_command
import bench.commands.show_command, bench.commands.cost_command
import bench.records.stored, bench.records.run_contents, methods.registry
[methods.registry.method(name) for name in methods.registry.names()]
print([name for name in {HEAVY!r} if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
