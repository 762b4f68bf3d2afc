"""The one command for all GPU checks, with tiny shapes on the CPU: no row may fail."""

import importlib.util
import os
import subprocess
import sys

import pytest

from jobs.home import PROJECT

pytestmark = pytest.mark.engine


def test_every_check_runs_with_tiny_shapes():
    done = subprocess.run(
        ["sh", "tests/bench/gpu.sh", "--smoke"], cwd=PROJECT, capture_output=True, text=True, timeout=900,
        env=os.environ | {"PYTHON": sys.executable},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    rows = [line for line in done.stdout.splitlines() if line.startswith("| ")][1:]
    assert len(rows) == 8 and "FAILED" not in done.stdout
    assert ("left out" in done.stdout) == (importlib.util.find_spec("bitsandbytes") is None)
    (cosine,) = [line for line in rows if line.startswith("| gradient")]
    assert float(cosine.split("cosine ")[1].split()[0]) >= 0.9999
    (fisher,) = [line for line in rows if line.startswith("| Fisher")]
    assert float(fisher.split("difference ")[1].split()[0]) < 1e-5


def test_without_a_gpu_it_says_so():
    code = [sys.executable, "-m", "tests.bench.gpu"]
    done = subprocess.run(
        code, cwd=PROJECT, capture_output=True, text=True, timeout=120, env=os.environ | {"CUDA_VISIBLE_DEVICES": ""}
    )
    assert done.returncode == 1 and "no GPU here" in done.stderr and "Traceback" not in done.stderr
