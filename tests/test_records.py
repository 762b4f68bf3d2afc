"""The ledger: several processes, killed writers, compare-and-set, blocking and queueing again."""

import json
import signal
import subprocess
import sys
import time

import pytest

from engine.settings import ConfigError
from jobs.home import PROJECT
from jobs.records import BLOCKED, CANCELLED, DONE, FAILED, QUEUED, RUNNING, Job, Records, backup_of

ADD = "import sys; from pathlib import Path; from jobs.records import *; r = Records(Path(sys.argv[1]));"
ADD += "[r.add([Job('', 'phase', 'run')]) for _ in range(int(sys.argv[2]))]"


def writer(path, count: int) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, "-c", ADD, str(path), str(count)], cwd=PROJECT)


@pytest.fixture
def records(tmp_path) -> Records:
    return Records(tmp_path / "records.json")


def chain(records: Records) -> list[str]:
    """Three jobs, each after the one before."""
    jobs = [Job("", "phase", "run"), Job("", "evaluate", "run", after="#0"), Job("", "phase", "run", after="#1")]
    return [job.id for job in records.add(jobs)]


@pytest.mark.processes
def test_concurrent_writers_lose_nothing(records):
    writers = [writer(records.path, 30) for _ in range(3)]
    assert [process.wait(60) for process in writers] == [0, 0, 0]
    assert list(records.jobs()) == [str(number) for number in range(1, 91)]


@pytest.mark.processes
def test_a_killed_writer_leaves_a_whole_file_and_no_lock(records):
    for _ in range(6):
        process = writer(records.path, 10_000)
        seen = len(records.jobs())
        deadline = time.monotonic() + 20
        while len(records.jobs()) < seen + 5:  # every read in between succeeds
            assert time.monotonic() < deadline
        process.send_signal(signal.SIGKILL)
        process.wait()
        json.loads(records.path.read_bytes())
        records.add([Job("", "phase", "run")])
    numbers = [int(job_id) for job_id in records.jobs()]
    assert numbers == list(range(1, len(numbers) + 1))


def test_compare_and_set(records):
    job = records.add([Job("", "phase", "run")])[0].id
    assert records.change(job, [QUEUED], state=RUNNING)
    assert not records.change(job, [QUEUED], state=RUNNING)
    assert not records.change("99", [QUEUED], state=RUNNING)
    assert records.end(job, [RUNNING], DONE)
    assert not records.end(job, [RUNNING], FAILED)
    assert records.job(job).state == DONE


def test_failure_blocks_descendants_and_requeue_brings_them_back(records):
    first, second, third = chain(records)
    records.end(first, [QUEUED], FAILED, "no luck")
    assert [records.job(i).state for i in (second, third)] == [BLOCKED, BLOCKED]
    assert records.job(second).remedy == f"hybridsum.py retry {first}"
    assert records.requeue(first) == [first, second, third]
    assert {records.job(i).state for i in (first, second, third)} == {QUEUED}
    assert records.job(first).reason == ""


def test_requeue_of_a_child_stays_blocked_while_its_parent_is_bad(records):
    first, second, third = chain(records)
    records.end(first, [QUEUED], CANCELLED)
    records.requeue(second)
    assert [records.job(i).state for i in (first, second, third)] == [CANCELLED, BLOCKED, BLOCKED]
    records.end(second, [BLOCKED], CANCELLED)
    assert records.requeue(third) and records.job(third).state == BLOCKED


def test_done_is_not_requeued(records):
    job = records.add([Job("", "phase", "run")])[0].id
    records.end(job, [QUEUED], DONE)
    assert records.requeue(job) == []


def test_nan_is_refused_and_nothing_is_lost(records):
    job = records.add([Job("", "phase", "run")])[0].id
    with pytest.raises(ValueError):
        records.change(job, [QUEUED], started=float("nan"))
    assert records.job(job).started is None


def test_a_broken_file_names_its_backup(records):
    records.add([Job("", "phase", "run")])
    records.add([Job("", "phase", "run")])
    records.path.write_text("{")
    with pytest.raises(ConfigError, match=r"records\.json\.bak"):
        records.jobs()
    assert len(json.loads(backup_of(records.path).read_bytes())["jobs"]) == 1


def test_facts_and_evaluations_keep_the_last_value(records):
    assert records.fact("paused") is None
    records.set_fact("paused", "by hand")
    assert Records(records.path).fact("paused") == "by hand"
    records.set_fact("paused", None)
    assert records.fact("paused") is None
    row = {"run": "r", "phase": "base", "test_set": "t", "fingerprint": "f", "metrics": {}, "path": "p", "created": 1.0}
    records.add_evaluation(row)
    records.add_evaluation(row | {"created": 2.0})
    assert [r["created"] for r in records.evaluations()] == [2.0]
