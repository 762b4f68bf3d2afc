"""The environment of a job: memory that was freed once is used again, and what the user has set stays."""

import os
import platform
import subprocess
import sys

import pytest

from jobs.environment import KEEPING, of_job

STEPS = """
import resource
def step():
    arrays = [b"x" * (8 << 20) for _ in range(5)]
step(), step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(environment: dict[str, str]) -> int:
    """Pages that a process fetches in five steps like the two before."""
    done = subprocess.run([sys.executable, "-c", STEPS], env=environment, capture_output=True, text=True, check=True)
    return int(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="settings of glibc, which is not here")
def test_a_job_s_steps_work_in_the_memory_of_the_first():
    plain = {name: value for name, value in os.environ.items() if name not in KEEPING}
    assert faults(of_job(plain)) < faults(plain) / 20


def test_what_the_user_has_set_stays():
    given = of_job({"OMP_WAIT_POLICY": "ACTIVE", "HOME": "/here"})
    assert given == {"OMP_WAIT_POLICY": "ACTIVE", "HOME": "/here"} | KEEPING
    assert of_job({"GLIBC_TUNABLES": "glibc.malloc.check=3"})["GLIBC_TUNABLES"] == "glibc.malloc.check=3"
