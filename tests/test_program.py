"""hybridsum.py called with a Python that has no packages."""

import shutil
import subprocess
import sys
from pathlib import Path

from tests.conftest import PROJECT


def call(folder: Path, *arguments: str) -> subprocess.CompletedProcess:
    """The program copied to `folder`, run by an interpreter that sees the standard library alone."""
    program = shutil.copy(PROJECT / "hybridsum.py", folder)
    return subprocess.run([sys.executable, "-I", "-S", program, *arguments], capture_output=True, text=True, timeout=60)


def test_without_the_packages_it_says_how_to_get_them(tmp_path):
    done = call(tmp_path, "jobs")
    assert done.returncode == 2
    assert done.stderr == f"hybridsum.py: the packages are not installed. Run `make setup` in {tmp_path}\n"


def test_with_an_environment_beside_it_it_goes_on_there(tmp_path):
    own = tmp_path / ".venv" / "bin" / "python"
    own.parent.mkdir(parents=True)
    own.write_text('#!/bin/sh\necho "$@"\n')
    own.chmod(0o755)
    assert call(tmp_path, "jobs", "--json").stdout == f"{tmp_path}/hybridsum.py jobs --json\n"
