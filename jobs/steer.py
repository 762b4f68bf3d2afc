"""What a person does to the line and to the runner: start, stop, cancel, retry, reorder, pause. Light: no huey here."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from engine import events as ev
from engine.settings import ConfigError
from jobs import locks, progress
from jobs.home import PROJECT, Home
from jobs.records import BLOCKED, CANCELLED, DONE, QUEUED, RUNNING, Job, Records

LIVE, STALE, LOST, STOPPED = "LIVE", "STALE", "LOST", "STOPPED"
STALE_AFTER = 10.0  # seconds without a beat from a runner that holds its lock
START_WITHIN = 20.0  # seconds
STOP_WITHIN = 20.0
JOBS_END_WITHIN = 120.0
POLL = 0.1
PAUSED_BY_USER = "paused by hand"
PAUSED_BY_REBOOT = "the machine was restarted while there was work in the line"
PAUSED_BY_STOP = "the runner is being stopped with its jobs"


def status(home: Home, records: Records | None = None) -> dict:
    """{state, pid, beat_age, jobs, paused} of the runner.

    state: LIVE; STALE, it lives but has not moved for beat_age seconds; LOST, it was killed; STOPPED.
    jobs: ids that the ledger calls running.  paused: why nothing new is started, or None.
    """
    records = records or Records(home.records)
    beat_age, pid = _beat_age(home), _pid(home)
    if locks.is_held(home.runner_lock):
        state = STALE if beat_age is not None and beat_age > STALE_AFTER else LIVE
    else:
        state, pid = (LOST if pid else STOPPED), None
    running = [job.id for job in records.jobs().values() if job.state == RUNNING]
    return {"state": state, "pid": pid, "beat_age": beat_age, "jobs": running, "paused": records.fact("paused")}


def _beat_age(home: Home) -> float | None:
    try:
        return round(max(0.0, time.time() - home.runner_beat.stat().st_mtime), 1)
    except FileNotFoundError:
        return None


def _pid(home: Home) -> int | None:
    try:
        return int(home.runner_pid.read_text())
    except (FileNotFoundError, ValueError):
        return None


def ensure_running(home: Home) -> int | None:
    """Start the runner unless one holds its lock; return its pid once it does. Raises ConfigError if it cannot start.

    It is started by file path, in a session of its own and away from this terminal, so that closing it ends nothing.
    """
    if locks.is_held(home.runner_lock):
        return _pid(home)
    process = spawn_runner(home, [sys.executable, str(PROJECT / "hybridsum.py"), "runner", "serve"])
    # Of several that are started at once one gets the lock and the others leave. Ours is waited for in either case, or
    # it could take the lock later, when somebody has just stopped the first.
    if not _within(START_WITHIN, lambda: process.poll() is not None or (_serves(home) and _pid(home) == process.pid)):
        raise ConfigError(f"the runner did not start within {START_WITHIN:.0f} s. See {home.runner_log}")
    if process.poll() is not None and not _within(1.0, lambda: _serves(home)):
        raise ConfigError(f"the runner ended at once: {last_line(home.runner_log)}. See {home.runner_log}")
    return _pid(home)


def spawn_runner(home: Home, command: list[str]) -> subprocess.Popen:
    with home.runner_log.open("ab") as log:
        return subprocess.Popen(
            command,
            cwd=PROJECT,
            env=os.environ | {"HYBRIDSUM_HOME": str(home.root)},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )


def _serves(home: Home) -> bool:
    pid = _pid(home)
    return locks.is_held(home.runner_lock) and pid is not None and locks.identity(pid) is not None


def stop(home: Home, jobs: bool = False) -> list[str]:
    """End the runner. Its jobs go on, unless `jobs`: then they are cancelled first. Returns the ids that go on."""
    records = Records(home.records)
    if not locks.is_held(home.runner_lock):
        if jobs:
            _cancel_running(home, records)  # nobody watches them, but they look at the file by themselves
        home.runner_pid.unlink(missing_ok=True)
        return _running(records)
    if not jobs:
        _terminate_runner(home)
        return _running(records)
    before = records.fact("paused")
    records.set_fact("paused", PAUSED_BY_STOP)  # or the runner would fill the freed slot with the next job
    try:
        _cancel_running(home, records)
        _within(JOBS_END_WITHIN, lambda: not _running(records))
        _terminate_runner(home)
    finally:
        records.set_fact("paused", before)
    return _running(records)


def _running(records: Records) -> list[str]:
    return [job.id for job in records.jobs().values() if job.state == RUNNING]


def _cancel_running(home: Home, records: Records) -> None:
    for job_id in _running(records):
        cancel(home, records, job_id)


def _terminate_runner(home: Home) -> None:
    def gone() -> bool:
        if pid := _pid(home):  # read anew: one that was just starting may have taken over the lock
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)
        return _within(1.0, lambda: not locks.is_held(home.runner_lock))

    if not _within(STOP_WITHIN, gone):
        pid = _pid(home) or f"see `fuser {home.runner_lock}`"
        raise ConfigError(f"the runner (pid {pid}) does not end. Jobs outlive it, so this is safe: kill -9 {pid}")


def _within(seconds: float, condition: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(POLL)
    return True


def cancel(home: Home, records: Records, job_id: str) -> str:
    """Ask a job to stop; returns its state now. One that has not started is cancelled at once, a running one by itself.

    Jobs that wait for it are blocked. Raises ConfigError if the job is unknown or has ended.
    """
    job = records.job(job_id)
    if job.state == BLOCKED and records.end(job_id, [BLOCKED], CANCELLED, reason="cancelled"):
        return CANCELLED
    if job.state not in (QUEUED, RUNNING):
        raise ConfigError(f"job {job_id}: has ended ({job.state}); there is nothing to cancel")
    home.job(job_id).mkdir(parents=True, exist_ok=True)
    home.cancel(job_id).touch()  # first, so that a runner that starts it at this moment finds the file
    if records.end(job_id, [QUEUED], CANCELLED, reason="cancelled before it started"):
        ev.Writer(home.events(job_id), job.attempt)(ev.Ended(CANCELLED, "cancelled before it started"))
    return records.job(job_id).state


def retry(home: Home, records: Records, job_id: str) -> list[str]:
    """Queue an unsuccessful job again, with the jobs it had blocked; returns their ids.

    The old result stays as result-ATTEMPT.json. Raises ConfigError if the job is unknown or did not end badly.
    """
    job = records.job(job_id)
    if job.state in (QUEUED, RUNNING):
        raise ConfigError(f"job {job_id}: is {job.state}. Cancel it before it can be retried")
    if job.state == DONE:
        raise ConfigError(f"job {job_id}: is done, and only a job that ended badly is retried")
    with contextlib.suppress(FileNotFoundError):
        home.result(job_id).rename(home.job(job_id) / f"result-{job.attempt}.json")
    home.cancel(job_id).unlink(missing_ok=True)
    again = records.requeue(job_id)
    if not again:
        raise ConfigError(f"job {job_id}: is {records.job(job_id).state}, and only a job that ended badly is retried")
    return again


def set_priority(records: Records, job_id: str, priority: int) -> None:
    """Higher goes first. The runner puts its line into the new order."""
    records.job(job_id)
    if not records.change(job_id, [QUEUED, BLOCKED], priority=priority):
        raise ConfigError(f"job {job_id}: is {records.job(job_id).state}; only a waiting job has a place in the line")


def pause(records: Records, reason: str = PAUSED_BY_USER) -> None:
    """Nothing new is started; running jobs go on."""
    records.set_fact("paused", reason)


def resume(records: Records) -> None:
    records.set_fact("paused", None)


def waiting_for(jobs: dict[str, Job], job_id: str) -> list[str]:
    """Ids of the queued jobs that wait for a job, directly or through others."""
    found = [job_id]
    for job in jobs.values():  # in the order of creation, so parents come first
        if job.after in found and job.state == QUEUED:
            found.append(job.id)
    return found[1:]


def what_is_lost(home: Home, records: Records, job_id: str) -> str:
    """One or two sentences that name what cancelling a job loses, for the question before it is done."""
    job = records.job(job_id)
    if job.state not in (QUEUED, RUNNING, BLOCKED):
        return f"Job {job_id} has ended ({job.state}); there is nothing to cancel."
    waiting = waiting_for(records.jobs(), job_id)
    sentences = [_work_at_stake(home, job)]
    if waiting:
        sentences.append(
            f"Job {waiting[0]} waits for it and will be blocked."
            if len(waiting) == 1
            else f"Jobs {', '.join(waiting)} wait for it and will be blocked."
        )
    return " ".join(sentences)


def _work_at_stake(home: Home, job: Job) -> str:
    done = progress.of(home.events(job.id))
    saved = done.reached[0]
    kept = f"step {saved}" if 0 < saved < 10**12 else "the final one" if saved else None
    if job.state != RUNNING and not kept:
        return f"Job {job.id} has not started: no work is lost."
    if job.kind == "evaluate":
        return f"Job {job.id} has judged {done.done or 0} of {done.total or '?'} documents; a retry begins the rest."
    if job.kind == "fisher":
        return f"Job {job.id} has seen {done.done or 0} of {done.total or '?'} documents; a retry begins anew."
    if done.step is None:
        return f"Job {job.id} has not made a step yet ({done.stage or 'starting'}): little work is lost."
    if kept:
        return (
            f"Job {job.id} is at step {done.step} of {done.steps}; it saves before it leaves, and if it must be killed, "
            f"its last checkpoint is {kept}. A retry goes on from there."
        )
    return (
        f"Job {job.id} is at step {done.step} of {done.steps} and has no checkpoint yet; it saves before it leaves, "
        "and if it must be killed, a retry begins anew."
    )


def last_line(path: Path, size: int = 4096) -> str:
    """The last line of a file that is not empty; empty if there is none."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - size))
            lines = file.read().decode(errors="replace").splitlines()
    except FileNotFoundError:
        return ""
    return next((line.strip() for line in reversed(lines) if line.strip()), "")
