"""The background runner: starts each job as a process of its own, watches it, and puts right what a crash left.

One for each home, proven by a lock. It owns no job: when it dies, jobs go on and the next runner adopts them.
"""

import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Any

from engine.events import Ended, Writer
from engine.settings import ConfigError
from jobs import gpus, locks, progress
from jobs.environment import of_job
from jobs.home import PROJECT, Home
from jobs.queue import Line
from jobs.records import BLOCKED, CANCELLED, DONE, FAILED, QUEUED, RUNNING, UNSUCCESSFUL, Job, Records
from jobs.steer import PAUSED_BY_REBOOT, last_line

COMMAND = (sys.executable, "-m", "jobs.process")
GRACE = 30.0  # seconds from a cancel request to SIGTERM; enough for a step and its checkpoint
KILL_GRACE = 10.0  # seconds from SIGTERM to SIGKILL
LINGER = 30.0  # seconds that a process may live on after its result
MAX_STALLED = 3  # attempts in a row that were killed without getting further
SPEC_WITHIN = 60.0  # seconds from the ledger row to the frozen spec
DEVICE_EVERY = 5.0  # seconds between two readings
TICK = 0.4  # seconds between two looks at the ledger
POLL = 0.1  # seconds between two looks at a job
ADOPT = 10**6  # priority of an adoption: before all jobs, so that it holds a worker and none is started in its slot
KILLED = -signal.SIGKILL

log = logging.getLogger(__name__)


class Runner:
    def __init__(
        self, home: Home, command: Sequence[str] = COMMAND, grace: float = GRACE, kill_grace: float = KILL_GRACE
    ):
        self.home, self.command, self.grace, self.kill_grace = home, command, grace, kill_grace
        self.records = Records(home.records)
        self.stopping = threading.Event()
        self._mutex = threading.Lock()
        self._trouble = ""  # of the last look
        self._in_hand: set[str] = set()  # jobs that a worker, or this moment's reconciling, deals with

    # -- the process --------------------------------------------------------------------------------------------

    def serve(self) -> int:
        """Run until SIGTERM. Exit status 1, and nothing done, if another runner serves this home."""
        lock = self._lock()
        if lock is None:
            pid = self.home.runner_pid.read_text() if self.home.runner_pid.exists() else "unknown"
            print(
                f"{self.home.root}: a runner serves it already (pid {pid}). `hybridsum.py runner stop` ends it",
                file=sys.stderr,
            )
            return 1
        with lock:
            self._heed_signals()
            self.home.runner_beat.touch()
            self.home.runner_pid.write_text(str(os.getpid()))
            self.slots = gpus.slots()
            self.line = Line(self.home, self.perform)
            self._note_reboot()
            self._attend()
            self.home.runner_pid.unlink(missing_ok=True)
        return 0

    def _lock(self) -> IO | None:
        """None if a runner holds it. Who only asks whether one lives shares the lock for an instant: that is waited for."""
        while not (lock := locks.locked(self.home.runner_lock)):
            if locks.is_held(self.home.runner_lock):
                return None
            time.sleep(0.01)
        return lock

    def _note_reboot(self) -> None:
        boot, served = locks.boot_id(), self.records.fact("boot")
        if served == boot:
            return
        if served and any(job.state in (QUEUED, RUNNING) for job in self.records.jobs().values()):
            self.records.set_fact("paused", PAUSED_BY_REBOOT)
        self.records.set_fact("boot", boot)

    def _attend(self) -> None:
        """Huey's threads take jobs from the line; this thread keeps the line true."""
        running = sum(job.state == RUNNING for job in self.records.jobs().values())
        self.line.flush()  # what stood in it may be out of date
        self._tend()  # adoptions enter the line before the first worker looks at it
        consumer = self.line.consumer(max(len(self.slots), running))
        consumer.start()
        self._heed_signals()  # again, in place of Huey's
        log.info("runner %d serves %s with %d slots", os.getpid(), self.home.root, len(self.slots))
        while not self.stopping.wait(TICK):
            self._tend()
            consumer.check_worker_health()
        consumer.stop()
        for _, worker in consumer.worker_threads:
            worker.join(timeout=5)  # lets a start that has begun come to its end
        log.info("runner %d stops; its jobs go on", os.getpid())

    def _heed_signals(self) -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: self.stopping.set())
        signal.signal(signal.SIGHUP, signal.SIG_IGN)  # Huey would execute the program anew

    def _tend(self) -> None:
        """One look. What goes wrong (a full disk, a ledger that cannot be read) is tried again at the next."""
        trouble = ""
        try:
            self.home.runner_beat.touch()
            self.reconcile()
        except Exception as error:
            trouble = f"{type(error).__name__}: {error}"
            if trouble != self._trouble:  # not twice a second
                log.exception("cannot keep the line")
        self._trouble = trouble

    # -- keeping ledger, line and processes in agreement --------------------------------------------------------

    def reconcile(self) -> None:
        """Adopt jobs that live, finish those that died, block what cannot come, announce what is ready."""
        self.line.heal()
        jobs = self.records.jobs()
        adoptions = []
        for job in jobs.values():
            if job.state == RUNNING and job.id not in self._in_hand and self._settle(job.id):
                adoptions.append(job.id)
            elif job.state == QUEUED:
                self._weed(job, jobs)
        ready = [] if self.records.fact("paused") else self._ready()
        self._announce(adoptions, ready)

    def _settle(self, job_id: str) -> bool:
        """True if the running job lives and needs a watcher. A dead one is finished here."""
        if not self._claim(job_id):
            return False
        try:
            job = self.records.job(job_id)
            if job.state != RUNNING:
                return False
            if self._owner(job) is not None:
                return True
            if job.owner or not locks.is_held(self.home.job_lock(job_id)):  # else it is only just being started
                self._finish(job, KILLED)
            return False
        finally:
            self._release(job_id)

    def _owner(self, job: Job) -> locks.Identity | None:
        """The living process of a running job.

        A runner that died between starting a process and writing its name leaves no owner; the lock the process
        inherited still leads to it.
        """
        if job.owner:
            return job.owner if locks.is_alive(job.owner) else None
        pid = locks.leader(self.home.job_lock(job.id))
        owner = locks.identity(pid) if pid else None
        if owner:
            self.records.change(job.id, [RUNNING], owner=owner)
        return owner

    def _weed(self, job: Job, jobs: dict[str, Job]) -> None:
        """Queued jobs that can never start."""
        parent = jobs.get(job.after) if job.after else None
        if job.after and parent is None:
            self._end(
                job, Ended(FAILED, f"waits for job {job.after}, which the ledger does not know", "queue it again")
            )
        elif parent and parent.state in UNSUCCESSFUL:
            reason = f"waits for job {parent.id}, which is {parent.state}"
            remedy = f"hybridsum.py retry {parent.id}"
            self.records.change(job.id, [QUEUED], state=BLOCKED, ended=time.time(), reason=reason, remedy=remedy)
        elif not self.home.spec(job.id).exists() and time.time() - job.created > SPEC_WITHIN:
            self._end(job, Ended(FAILED, "was never fully queued: its spec.yaml is missing", "queue it again"))

    def _ready(self) -> list[str]:
        """Ids of the queued jobs that could start now, best first."""
        jobs = self.records.jobs()
        ready = [
            job
            for job in jobs.values()
            if job.state == QUEUED
            and (job.after is None or jobs[job.after].state == DONE)
            and job.id not in self._in_hand
            and self.home.spec(job.id).exists()
        ]
        return [job.id for job in sorted(ready, key=lambda job: (-job.priority, int(job.id)))]

    def _announce(self, adoptions: list[str], ready: list[str]) -> None:
        """Make Huey's line hold these ids in this order. An id too many does no harm: perform() looks again."""
        wanted = adoptions + ready
        pending = self.line.pending()
        if pending == wanted:
            return
        jobs = self.records.jobs()
        priority = dict.fromkeys(adoptions, ADOPT) | {job_id: jobs[job_id].priority for job_id in ready}
        for job_id in wanted:
            if job_id not in pending:
                self.line.enqueue(job_id, priority[job_id])
        standing = self.line.pending()
        if standing != [job_id for job_id in wanted if job_id in standing]:
            self.line.flush()
            for job_id in wanted:
                self.line.enqueue(job_id, priority[job_id])

    # -- one job, in a worker's thread --------------------------------------------------------------------------

    def perform(self, job_id: str) -> None:
        """Start or adopt a job and stay with it to its end. A message that comes twice, or too late, does nothing."""
        if self.stopping.is_set() or not self._claim(job_id):
            return
        try:
            job = self.records.jobs().get(job_id)
            if job and job.state == RUNNING and (owner := self._owner(job)):
                log.info("job %s: adopted, pid %d", job_id, owner[1])
                self._watch(job_id, job.attempt, owner[1], lambda: None if locks.is_alive(owner) else KILLED)
            elif job and job.state == QUEUED:
                self._start(job_id)
        except Exception as error:  # one bad job must not take the runner with it
            log.exception("job %s: %s", job_id, error)
            self._give_up(job_id, error)
        finally:
            self._release(job_id)

    def _claim(self, job_id: str) -> bool:
        with self._mutex:
            if job_id in self._in_hand:
                return False
            self._in_hand.add(job_id)
            return True

    def _release(self, job_id: str) -> None:
        with self._mutex:
            self._in_hand.discard(job_id)

    def _give_up(self, job_id: str, error: Exception) -> None:
        """Fail a job that could not be started; one whose process lives is left for the next look."""
        if locks.is_held(self.home.job_lock(job_id)):
            return
        try:
            job = self.records.job(job_id)
            self._end(job, Ended(FAILED, f"could not be started: {error}", f"see {self.home.runner_log}"))
        except (ConfigError, OSError) as second:
            log.error("job %s: cannot be recorded as failed either: %s", job_id, second)

    def _start(self, job_id: str) -> None:
        slot, device_lock = self._wait_for(job_id, self._free_slot) or (None, None)
        if slot is None:
            return
        with device_lock:
            job_lock = self._wait_for(job_id, lambda: locks.locked(self.home.job_lock(job_id)))
            if job_lock is None:
                return
            with job_lock:
                attempt = self.records.job(job_id).attempt + 1
                values = {"state": RUNNING, "attempt": attempt, "started": time.time(), "ended": None, "owner": None}
                if not self.records.change(job_id, [QUEUED], **values):
                    return
                process = self._spawn(job_id, attempt, slot, [device_lock, job_lock])
        # This process's copies of the locks are closed: from here on they live exactly as long as the job.
        self._name(job_id, process.pid)
        log.info("job %s: attempt %d, pid %d, %s", job_id, attempt, process.pid, slot.name)
        self._watch(job_id, attempt, process.pid, process.poll)

    def _wait_for(self, job_id: str, attempt: Callable[[], Any]) -> Any:
        """Try until it succeeds; None as soon as the job may no longer start."""
        while not self.stopping.is_set() and not self.records.fact("paused"):
            if self.records.job(job_id).state != QUEUED:
                return None
            if found := attempt():
                return found
            self.stopping.wait(POLL)
        return None

    def _free_slot(self) -> tuple[gpus.Slot, IO] | None:
        for slot in self.slots:
            if lock := locks.locked(self.home.device_lock(slot.index)):
                return slot, lock
        return None

    def _spawn(self, job_id: str, attempt: int, slot: gpus.Slot, inherited: list[IO]) -> subprocess.Popen:
        given = {
            "HYBRIDSUM_HOME": str(self.home.root),
            "HYBRIDSUM_ATTEMPT": str(attempt),
            "HYBRIDSUM_DEVICE": slot.name,
            "HYBRIDSUM_LOCK": str(inherited[-1].fileno()),
            "PYTHONHASHSEED": "0",  # bert-score batches texts in the order of a set: the same scores to the last bit
        }
        environment = of_job(os.environ) | given
        if slot.visible is not None:
            environment |= {"CUDA_VISIBLE_DEVICES": slot.visible, "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
        with self.home.log(job_id).open("ab") as output:
            return subprocess.Popen(
                [*self.command, job_id],
                cwd=PROJECT,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
                pass_fds=[file.fileno() for file in inherited],
            )

    def _name(self, job_id: str, pid: int) -> None:
        self.records.change(job_id, [RUNNING], owner=locks.identity(pid))

    def _watch(self, job_id: str, attempt: int, pid: int, exit_status: Callable[[], int | None]) -> None:
        """Stay with a process until it has ended; write readings of the machine; press it to leave when asked to."""
        report = Writer(self.home.events(job_id), attempt)
        next_reading, since = 0.0, {}
        while (status := exit_status()) is None:
            if self.stopping.is_set():
                return
            now = time.monotonic()
            if now >= next_reading:
                self._report(report, pid)
                next_reading = now + DEVICE_EVERY
            if self.home.result(job_id).exists():
                self._press(pid, now - since.setdefault("result", now), LINGER)
            elif self.home.cancel(job_id).exists():
                self._press(pid, now - since.setdefault("cancel", now), self.grace)
            self.stopping.wait(POLL)
        self._finish(self.records.job(job_id), status)

    def _report(self, report: Writer, pid: int) -> None:
        try:
            report(gpus.read(pid, ours=self._other_pids(pid)))
        except OSError as error:
            log.warning("a reading is lost: %s", error)  # a full disk must not end the watch

    def _other_pids(self, pid: int) -> list[int]:
        return [job.pid for job in self.records.jobs().values() if job.state == RUNNING and job.pid not in (None, pid)]

    def _press(self, pid: int, waited: float, grace: float) -> None:
        if waited > grace + self.kill_grace:
            _signal_group(pid, signal.SIGKILL)
        elif waited > grace:
            _signal_group(pid, signal.SIGTERM)

    # -- the end ------------------------------------------------------------------------------------------------

    def _finish(self, job: Job, status: int) -> None:
        """Record how an attempt ended. Children that outlived it are killed, since they would keep its GPU."""
        for pid in locks.holders(self.home.job_lock(job.id), session=job.pid):
            log.warning("job %s: process %d outlived it and is killed", job.id, pid)
            _signal(pid, signal.SIGKILL)
        reached = progress.of(self.home.events(job.id)).reached
        further = any(now > before for now, before in zip(reached, job.progress or (0, 0), strict=True))
        stalled = 0 if further else job.stalled + 1
        ended = self._outcome(job, status, stalled)
        if ended.outcome != "requeued":
            self._end(job, ended)
            return
        Writer(self.home.events(job.id), job.attempt)(ended)
        values = {"state": QUEUED, "owner": None, "started": None, "stalled": stalled, "progress": list(reached)}
        self.records.change(job.id, [RUNNING], **values)
        log.info("job %s: %s", job.id, ended.reason)

    def _outcome(self, job: Job, status: int, stalled: int) -> Ended:
        """The result file decides; then a cancel request; an error of its own is final; a kill is not."""
        if result := read_result(self.home.result(job.id)):
            return result
        see_log = f"hybridsum.py log {job.id}"
        if self.home.cancel(job.id).exists():
            return Ended(CANCELLED, "cancelled")
        if status >= 0:
            reason = last_line(self.home.log(job.id)) if status else ""
            return Ended(FAILED, reason or f"ended with status {status} and left no result", see_log)
        how = f"was killed ({signal.Signals(-status).name})"
        if stalled >= MAX_STALLED:
            return Ended(FAILED, f"{how} {stalled} times in a row without getting further. Out of memory?", see_log)
        return Ended("requeued", f"{how}; it is queued again and goes on from its last checkpoint")

    def _end(self, job: Job, ended: Ended) -> None:
        """Event first, ledger second: who sees the job ended in the ledger finds its events complete."""
        if job.state not in (QUEUED, RUNNING):
            return
        if self.home.job(job.id).exists():
            Writer(self.home.events(job.id), job.attempt)(ended)
        self.records.end(job.id, [QUEUED, RUNNING], ended.outcome, ended.reason, ended.remedy, ended.stops)
        log.info("job %s: %s %s", job.id, ended.outcome, ended.reason)


def read_result(path: Path) -> Ended | None:
    """How a job says it ended; None if it left no result."""
    try:
        content = json.loads(path.read_bytes())
        if content["outcome"] in (DONE, FAILED, CANCELLED):
            words = (str(content.get(name, "")) for name in ("reason", "remedy"))
            return Ended(content["outcome"], *words, stops=bool(content.get("stops")))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError):
        pass
    return Ended(FAILED, f"{path}: not a result", "retry the job")


def _signal_group(pid: int, number: int) -> None:
    try:
        os.killpg(pid, number)
    except ProcessLookupError:
        log.debug("group %d is gone already", pid)


def _signal(pid: int, number: int) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        log.debug("process %d is gone already", pid)


def serve(home: Home) -> int:
    """The body of `hybridsum.py runner serve`."""
    logging.getLogger("jobs").setLevel(min(logging.INFO, logging.getLogger().level))
    return Runner(home).serve()
