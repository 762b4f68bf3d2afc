"""The runner, with real processes that are really killed. Jobs are stubs (stub_job.py)."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from engine import events as ev
from engine.settings import ConfigError
from jobs import locks, progress, steer
from jobs.home import Home
from jobs.queue import Line
from jobs.records import BLOCKED, CANCELLED, DONE, ENDED, FAILED, QUEUED, RUNNING, Job, Records

pytestmark = pytest.mark.processes
SERVE = [sys.executable, str(Path(__file__).with_name("serve_stub.py"))]
SHORT, LONG, ENDLESS = {"steps": 4}, {"steps": 30}, {"steps": 2000}


class Box:
    """A home with a runner, and what a test asks about it."""

    def __init__(self, root: Path):
        self.home = Home(root)
        self.home.jobs.mkdir(parents=True)
        self.records = Records(self.home.records)
        self.runner: subprocess.Popen | None = None

    def start(self, *arguments: str) -> subprocess.Popen:
        self.runner = steer.spawn_runner(self.home, [*SERVE, *arguments])
        return self.runner

    def kill(self) -> None:
        self.runner.kill()
        self.runner.wait()

    def submit(self, spec: dict, **fields) -> str:
        job = self.records.add([Job("", "phase", "run", "phase1", **fields)])[0]
        self.home.job(job.id).mkdir()
        self.home.spec(job.id).write_text(json.dumps(spec))
        return job.id

    def wait(self, condition: Callable[[], object], seconds: float = 15) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, self.home.runner_log.read_text()[-4000:]
            time.sleep(0.02)

    def state(self, job_id: str) -> str:
        return self.records.job(job_id).state

    def running(self, spec: dict, **fields) -> tuple[str, int]:
        """Submit a job and wait until it has saved a checkpoint; its id and pid."""
        job_id = self.submit(spec, **fields)
        self.wait(lambda: progress.of(self.home.events(job_id)).reached[0] and self.records.job(job_id).pid)
        return job_id, self.records.job(job_id).pid

    def ends(self, job_id: str, state: str, attempt: int = 1) -> Job:
        self.wait(lambda: self.state(job_id) in ENDED)
        job = self.records.job(job_id)
        assert (job.state, job.attempt) == (state, attempt), job
        return job

    def starts(self, job_id: str) -> list[int]:
        """The step at which each process of the job began."""
        return [int(step) for step in re.findall(r"start at step (\d+)", self.home.log(job_id).read_text())]

    def times(self, job_id: str) -> list[float]:
        return [stamped.t for stamped in ev.read(self.home.events(job_id)) if isinstance(stamped.event, ev.Step)]

    def outcomes(self, job_id: str) -> list[str]:
        return [s.event.outcome for s in ev.read(self.home.events(job_id)) if isinstance(s.event, ev.Ended)]

    def close(self) -> None:
        if self.runner and self.runner.poll() is None:
            self.kill()
        for job in self.records.jobs().values():
            if locks.is_alive(job.owner):
                os.killpg(job.pid, signal.SIGKILL)
            if pid := locks.leader(self.home.job_lock(job.id)):
                os.kill(pid, signal.SIGKILL)


@pytest.fixture
def box(tmp_path, monkeypatch) -> Iterator[Box]:
    monkeypatch.setenv("HYBRIDSUM_HOME", str(tmp_path))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # one slot, whatever the machine has
    made = Box(tmp_path)
    yield made
    made.close()


def test_normal_job(box):
    box.start()
    job = box.submit(SHORT)
    box.ends(job, DONE)
    kinds = [type(stamped.event) for stamped in ev.read(box.home.events(job))]
    assert ev.Device in kinds and kinds[-1] is ev.Ended
    assert box.home.queue.stat().st_mode & 0o777 == 0o600


def test_a_gate_that_failed_stops_the_line_until_a_person_lets_it_go_on(box):
    first = box.submit(SHORT | {"stops": True, "reason": "the gate of phase1 failed"})
    second = box.submit(SHORT, after=first)
    third = box.submit(SHORT, after=second)
    box.start()
    assert box.ends(first, DONE).reason == "the gate of phase1 failed"
    job = box.ends(second, BLOCKED, attempt=0)
    assert job.reason == f"waits for job {first} (phase1), whose gate failed"
    assert job.remedy == f"hybridsum.py retry {second}"
    box.ends(third, BLOCKED, attempt=0)
    with pytest.raises(ConfigError, match="is done, and only a job that ended badly is retried"):
        steer.retry(box.home, box.records, first)
    assert box.home.result(first).exists()
    assert steer.retry(box.home, box.records, second) == [second, third]
    box.ends(third, DONE)


def test_second_runner_is_refused_and_names_the_first(box):
    first = box.start()
    box.wait(lambda: steer.status(box.home)["state"] == steer.LIVE and box.home.runner_pid.exists())
    second = subprocess.run(SERVE, capture_output=True, text=True, timeout=20)
    assert second.returncode == 1
    assert str(first.pid) in second.stderr
    assert steer.status(box.home)["pid"] == first.pid


def test_killed_runner_leaves_its_job_which_is_adopted_and_never_two_run(box):
    box.start()
    first, pid = box.running(LONG)
    second = box.submit(SHORT, priority=5)  # even so it must wait for the adopted job
    box.kill()
    assert steer.status(box.home)["state"] == steer.LOST
    box.start()
    box.ends(first, DONE)
    box.ends(second, DONE)
    assert box.starts(first) == [0]
    assert box.times(first)[-1] < box.times(second)[0]
    assert "adopted" in box.home.runner_log.read_text()


def test_runner_and_job_killed_resumes_from_the_checkpoint(box):
    box.start()
    job, pid = box.running(LONG)
    box.kill()
    os.kill(pid, signal.SIGKILL)
    box.start()
    box.ends(job, DONE, attempt=2)
    assert box.starts(job)[1] >= 5
    assert box.outcomes(job) == ["requeued", "done"]


def test_killed_job_runs_again(box):
    box.start()
    job, pid = box.running(LONG)
    os.kill(pid, signal.SIGKILL)
    box.ends(job, DONE, attempt=2)
    assert box.records.job(job).stalled == 0


def test_own_error_is_final_and_names_the_last_line(box):
    box.start()
    job = box.ends(box.submit(SHORT | {"fails": True}), FAILED)
    assert job.reason == "RuntimeError: asked to fail"
    assert job.remedy == f"hybridsum.py log {job.id}"


def test_result_decides_over_the_exit_status(box):
    box.start()
    job = box.ends(box.submit(SHORT | {"outcome": "failed", "reason": "loss is nan"}), FAILED)
    assert job.reason == "loss is nan"


def test_cancel_waiting_running_and_stubborn(box):
    box.start()
    stubborn, pid = box.running(ENDLESS | {"stubborn": True})
    waiting = box.submit(SHORT)
    child = box.submit(SHORT, after=waiting)
    assert waiting in steer.what_is_lost(box.home, box.records, waiting)
    assert steer.cancel(box.home, box.records, waiting) == CANCELLED
    assert (box.state(waiting), box.state(child)) == (CANCELLED, BLOCKED)
    assert "step" in steer.what_is_lost(box.home, box.records, stubborn)
    steer.cancel(box.home, box.records, stubborn)
    box.ends(stubborn, CANCELLED)
    assert locks.identity(pid) is None
    polite, _ = box.running(ENDLESS)
    steer.cancel(box.home, box.records, polite)
    assert "at step" in box.ends(polite, CANCELLED).reason
    with pytest.raises(ConfigError, match="nothing to cancel"):
        steer.cancel(box.home, box.records, polite)


def test_stopped_runner_leaves_its_job_and_the_next_adopts_it(box):
    runner = box.start()
    job, pid = box.running(LONG)
    assert steer.stop(box.home) == [job]
    assert runner.wait(10) == 0
    assert steer.status(box.home)["state"] == steer.STOPPED
    assert locks.identity(pid)
    box.start()
    box.ends(job, DONE)
    assert box.starts(job) == [0]


def test_stop_with_jobs_cancels_them_first(box):
    box.start()
    job, _ = box.running(ENDLESS)
    other = box.submit(SHORT)
    assert steer.stop(box.home, jobs=True) == []
    assert (box.state(job), box.state(other)) == (CANCELLED, QUEUED)
    assert box.records.fact("paused") is None


def test_job_that_only_the_ledger_knows_is_run(box):
    """The client died between ledger and queue, or the message was lost with queue.db."""
    job = box.submit(SHORT)
    assert Line(box.home).pending() == []
    box.start()
    box.ends(job, DONE)


def test_runner_killed_between_ledger_and_process(box):
    box.start("die-before-process")
    job = box.submit(SHORT)
    assert box.runner.wait(15) == -signal.SIGKILL
    found = box.records.job(job)
    assert (found.state, found.owner) == (RUNNING, None)
    box.start()
    box.ends(job, DONE, attempt=2)
    assert box.starts(job) == [0]


def test_runner_killed_between_process_and_its_name(box):
    box.start("die-before-name")
    job = box.submit(LONG)
    assert box.runner.wait(15) == -signal.SIGKILL
    found = box.records.job(job)
    assert (found.state, found.owner) == (RUNNING, None)
    box.start()
    box.ends(job, DONE)  # adopted: the inherited lock led to it
    assert box.starts(job) == [0]
    assert "adopted" in box.home.runner_log.read_text()


def test_sighup_does_not_end_it(box):
    runner = box.start()
    first = box.submit(SHORT)
    box.ends(first, DONE)
    os.kill(runner.pid, signal.SIGHUP)
    box.ends(box.submit(SHORT), DONE)
    assert runner.poll() is None and steer.status(box.home)["pid"] == runner.pid


def test_queue_db_deleted_under_the_runner(box):
    box.start()
    running, _ = box.running(LONG)
    waiting = box.submit(SHORT)
    box.wait(lambda: Line(box.home).pending() == [waiting])
    for path in box.home.state.glob("queue.db*"):
        path.unlink()
    box.ends(running, DONE)
    box.ends(waiting, DONE)


def test_dependents_wait_are_blocked_and_come_back_with_retry(box):
    box.start()
    parent = box.submit(SHORT | {"outcome": "failed", "reason": "no luck"})
    child = box.submit(SHORT, after=parent)
    grandchild = box.submit(SHORT, after=child)
    box.ends(parent, FAILED)
    assert f"job {parent}" in box.ends(child, BLOCKED, attempt=0).reason
    box.ends(grandchild, BLOCKED, attempt=0)
    box.home.spec(parent).write_text(json.dumps(SHORT))
    assert steer.retry(box.home, box.records, parent) == [parent, child, grandchild]
    box.ends(grandchild, DONE)
    assert box.records.job(parent).attempt == 2
    assert (box.home.job(parent) / "result-1.json").exists()
    assert box.times(parent)[-1] < box.times(child)[0] < box.times(grandchild)[0]


def test_priority_decides_the_order_also_afterwards(box):
    box.start()
    running, _ = box.running(ENDLESS)
    low, middle, high = box.submit(SHORT), box.submit(SHORT, priority=1), box.submit(SHORT, priority=2)
    box.wait(lambda: Line(box.home).pending() == [high, middle, low])
    steer.set_priority(box.records, low, 3)
    box.wait(lambda: Line(box.home).pending() == [low, high, middle])
    steer.cancel(box.home, box.records, running)
    for job in (low, high, middle):
        box.ends(job, DONE)
    assert box.times(low)[0] < box.times(high)[0] < box.times(middle)[0]


def test_line_is_paused_after_a_reboot_until_resumed(box):
    box.records.set_fact("boot", "an earlier boot")
    job = box.submit(SHORT)
    dead = box.submit(SHORT)
    box.records.change(dead, [QUEUED], state=RUNNING, attempt=1, owner=["an earlier boot", os.getpid(), "1"])
    box.start()
    box.wait(lambda: box.state(dead) == QUEUED)
    assert "restarted" in steer.status(box.home)["paused"]
    assert Line(box.home).pending() == []
    steer.resume(box.records)
    box.ends(job, DONE)
    box.ends(dead, DONE, attempt=2)


def test_pause_leaves_the_running_job_and_starts_no_other(box):
    box.start()
    running, _ = box.running(LONG)
    waiting = box.submit(SHORT)
    steer.pause(box.records)
    box.ends(running, DONE)
    box.wait(lambda: Line(box.home).pending() == [])
    assert box.state(waiting) == QUEUED
    steer.resume(box.records)
    box.ends(waiting, DONE)


def test_three_attempts_without_progress_fail(box):
    box.start()
    job = box.ends(box.submit(SHORT | {"dies": True}), FAILED, attempt=3)
    assert "3 times" in job.reason and "SIGKILL" in job.reason
    assert box.outcomes(job.id) == ["requeued", "requeued", "failed"]


def test_a_row_without_a_spec_is_given_up(box):
    row = box.records.add([Job("", "phase", "run", "phase1")])[0]
    box.records.change(row.id, [QUEUED], created=time.time() - 61)
    box.start()
    assert "never fully queued" in box.ends(row.id, FAILED, attempt=0).reason


def test_a_message_that_comes_twice_starts_one_process(box):
    box.start()
    job, _ = box.running(LONG)
    for _ in range(3):
        Line(box.home).enqueue(job)
    box.ends(job, DONE)
    box.ends(box.submit(SHORT), DONE)  # the line is not stuck
    assert box.starts(job) == [0]


def test_concurrent_starts_end_with_one_runner(box):
    """Through the real program, as the dashboard starts it."""
    code = "from jobs import steer; from jobs.home import Home; print(steer.ensure_running(Home.find()))"
    callers = [
        subprocess.Popen([sys.executable, "-c", code], cwd=steer.PROJECT, stdout=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    pids = {caller.communicate(timeout=30)[0].strip() for caller in callers}
    try:
        assert len(pids) == 1 and [caller.returncode for caller in callers] == [0, 0, 0]
        assert steer.status(box.home)["state"] == steer.LIVE
    finally:
        steer.stop(box.home)
    assert steer.status(box.home)["state"] == steer.STOPPED
