"""The one command for all GPU checks, with tiny shapes on the CPU: no row may fail, and time that is over is told."""

import importlib.util
import os
import subprocess
import sys

import pytest

from engine import extras
from jobs.home import PROJECT
from tests.bench import gpu

pytestmark = pytest.mark.engine


def told(*given: str) -> tuple[subprocess.CompletedProcess, list[str]]:
    done = subprocess.run(
        ["sh", "tests/bench/gpu.sh", "--smoke", *given], cwd=PROJECT, capture_output=True, text=True, timeout=1700,
        env=os.environ | {"PYTHON": sys.executable},
    )  # fmt: skip
    return done, [line for line in done.stdout.splitlines() if line.startswith("| ")][1:]


def test_every_check_runs_with_tiny_shapes(tmp_path):
    done, rows = told("--out", str(tmp_path / "table.md"))
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(rows) == len(gpu.parts(True)) == 13 and "FAILED" not in done.stdout and "cut off" not in done.stdout
    absent = sum(not importlib.util.find_spec(name) for name in ("bitsandbytes", "bitsandbytes", "trl"))
    assert sum("pip install" in row for row in rows) == absent
    (cosine,) = [line for line in rows if line.startswith("| gradient")]
    assert float(cosine.split("cosine ")[1].split()[0]) >= 0.9999
    (fisher,) = [line for line in rows if line.startswith("| Fisher")]
    assert float(fisher.split("difference ")[1].split()[0]) < 1e-5
    assert [line for line in (tmp_path / "table.md").read_text().splitlines() if line.startswith("| ")][1:] == rows


def test_what_the_time_does_not_suffice_for_is_cut_off(tmp_path):
    """The first check that can run is killed after a second or two, with all it started; the others do not begin."""
    done, rows = told("--seconds", "2.5", "--out", str(tmp_path / "table.md"))
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(rows) == 13 and not any("tokens/s" in row for row in rows)
    assert sum("cut off after" in row for row in rows) == 1 and sum("over before it began" in row for row in rows) > 5


def test_the_parts_fit_ten_minutes_and_the_wheels_are_those_of_the_project():
    assert gpu.WHOLE <= 600 - 20  # imports of the first process, and the end
    script, bench = (PROJECT / "tests/bench/gpu.sh").read_text(), (PROJECT / "requirements-bench.txt").read_text()
    for wheel in (extras.BITSANDBYTES, extras.LIGER, *gpu.TRL.split()):
        assert wheel in script
    assert all(wheel in bench for wheel in gpu.TRL.split())


def test_a_check_that_fails_is_named(monkeypatch, tmp_path):
    broken = gpu.Part("broken", "step", 99, 60, gpu._pace)
    found = gpu.child(broken, True, str(tmp_path), 120)
    assert "IndexError" in found["failed"] and gpu._told(found, broken)[0].startswith("FAILED: ")


def test_without_a_gpu_it_says_so():
    code = [sys.executable, "-m", "tests.bench.gpu"]
    done = subprocess.run(
        code, cwd=PROJECT, capture_output=True, text=True, timeout=120, env=os.environ | {"CUDA_VISIBLE_DEVICES": ""}
    )
    assert done.returncode == 1 and "no GPU here" in done.stderr and "Traceback" not in done.stderr
