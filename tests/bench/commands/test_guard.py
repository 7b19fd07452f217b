"""The start-up guard names whoever shadows one of our packages."""

import subprocess
import sys
from pathlib import Path

import pytest

from bench.commands.guard import HOME, PACKAGES, check_packages
from methods.framework.errors import MoebenchError


def test_our_own_packages_pass() -> None:
    check_packages()


def test_another_home_is_named(tmp_path: Path) -> None:
    with pytest.raises(MoebenchError, match=f"should come from {tmp_path}, but is found in {HOME}"):
        check_packages(tmp_path)


@pytest.mark.parametrize("name", [name for name in PACKAGES if name not in ("bench", "methods")])
def test_a_shadowing_package_is_one_clear_error(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    (tmp_path / name / "__init__.py").touch()
    code = f"import sys; sys.path[:0] = [{str(tmp_path)!r}, {str(HOME)!r}]; sys.argv = ['moebench', 'methods']; "
    code += "from bench.cli import main; main()"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert run.returncode == 1 and f"package '{name}'" in run.stderr and str(tmp_path) in run.stderr.replace("\n", "")
    assert "Traceback" not in run.stderr
