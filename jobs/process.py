"""A job's own process: the only place where jobs/ meets the heavy engine. Its last act is result.json."""

import faulthandler
import fcntl
import importlib
import os
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import Any, NoReturn

import psutil

from engine import events as ev
from engine import files
from engine.settings import ConfigError, first_line
from engine.work import Cancelled, Work
from jobs import adjust, gate, locks, plan, show
from jobs.home import Home
from jobs.kinds import KINDS
from jobs.records import CANCELLED, DONE, FAILED, Records
from jobs.submit import read_spec

PRINT_EVERY = 5.0  # seconds between two lines of progress in log.txt
LESS_MEMORY = (
    "lower train.per_device_train_batch_size (and raise train.gradient_accumulation_steps by as much), "
    "set model.dtype=bfloat16, or train.gradient_checkpointing=true"
)


def main(job_id: str) -> int:
    """Exit status 0: result.json says how it ended. 1: it failed. 2: another process works on this job."""
    home = Home.find()
    held = hold(home, job_id)
    if held is None:
        print(f"job {job_id}: another process works on it", file=sys.stderr)
        return 2
    if home.result(job_id).exists():
        return 0
    emit = Reporter(ev.Writer(home.events(job_id), int(os.environ.get("HYBRIDSUM_ATTEMPT", "1"))))
    result = attempt(home, job_id, emit)
    if result is None:
        restart(home, job_id, held)
    print(show.stamp(time.time()), result["outcome"], result["reason"])
    files.replace_json(home.result(job_id), result)
    return 0 if result["outcome"] != FAILED else 1


def hold(home: Home, job_id: str) -> Any:
    """The lock on the job, inherited from the runner or taken now; None if another process has it.

    The runner takes it before it starts a process, so a second one for the same job cannot come to this point.
    """
    inherited = os.environ.pop("HYBRIDSUM_LOCK", "")
    path = home.job_lock(job_id)
    if not home.job(job_id).is_dir():
        raise ConfigError(f"job {job_id}: no such job in {home.jobs}")
    if not inherited:
        return locks.locked(path)
    try:
        if os.path.samestat(os.fstat(int(inherited)), path.stat()):
            fcntl.flock(int(inherited), fcntl.LOCK_EX | fcntl.LOCK_NB)  # a second look: it is ours already
            return int(inherited)
    except OSError:
        return None
    return None


def restart(home: Home, job_id: str, held: Any) -> NoReturn:
    """A fresh interpreter for the same job in this process's place: same pid, locks and attempt, no memory in use.

    Only the locks stay open, or the driver's files would keep the memory of the GPU.
    """
    os.environ["HYBRIDSUM_LOCK"] = str(held if isinstance(held, int) else held.fileno())
    locks.keep_only([home.job_lock(job_id), *home.device_locks()])
    sys.stdout.flush()
    sys.stderr.flush()
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def attempt(home: Home, job_id: str, emit: "Reporter") -> dict[str, Any] | None:
    """Do the work; what it returns is the content of result.json, whatever happened.

    None: memory ran out, adjusted.yaml says what was made smaller, and the job goes on in a fresh process.
    """
    emit(ev.Started(os.getpid(), os.environ.get("HYBRIDSUM_DEVICE", "")))
    try:
        adjusted = adjust.read(home.adjusted(job_id))
        work = work_of(home, job_id, emit, adjusted)
    except Exception as error:
        return _failure(error, job_id)
    result = _perform(home, job_id, work)
    if result["remedy"] == LESS_MEMORY and (less := adjust.step_down(work.kind, emit.stage, work.settings)):
        adjust.write(home.adjusted(job_id), adjusted | less)
        emit(ev.Warned(adjust.warning(emit.stage, work.settings, less)))
        return None
    return result | ({"adjusted": adjusted} if adjusted else {})


def _perform(home: Home, job_id: str, work: Work) -> dict[str, Any]:
    try:
        module, function = KINDS[work.kind]
        facts = show.finite(getattr(importlib.import_module(module), function)(work) or {})
        if work.kind == "evaluate":
            facts |= _enter_evaluation(home, work, facts)
        if work.kind == "phase" and (predicted := read_spec(home.spec(job_id))[0].get("plan")):
            facts["plan"] = plan.compared(home, job_id, predicted)
            print(f"plan: {plan.words(facts['plan'])}")
        return {"reason": "", "remedy": "", **facts, "outcome": DONE}
    except Cancelled:
        return {
            "outcome": CANCELLED,
            "reason": "cancelled",
            "remedy": f"hybridsum.py retry {job_id} goes on from there",
        }
    except Exception as error:
        return _failure(error, job_id)


def _failure(error: Exception, job_id: str) -> dict[str, Any]:
    """The result of a job that failed. A mistake of the user is named, anything else goes into the log whole."""
    short = adjust.is_out_of_memory(error)
    if short:
        traceback.clear_frames(error.__traceback__)  # even the words for it need memory
    if isinstance(error, ConfigError) and not short:
        print(error, file=sys.stderr)
        reason, *rest = error.lines or ("",)
        return {"outcome": FAILED, "reason": reason, "remedy": "\n".join(rest)}
    traceback.print_exception(error)
    reason = f"{type(error).__name__}: {first_line(error)}"
    return {"outcome": FAILED, "reason": reason, "remedy": LESS_MEMORY if short else f"hybridsum.py log {job_id}"}


def work_of(home: Home, job_id: str, emit: ev.Emit, adjusted: dict[str, int]) -> Work:
    """What the frozen spec asks for, with what was adjusted. Raises ConfigError if the spec cannot be read."""
    job, settings = read_spec(home.spec(job_id))
    cancel = home.cancel(job_id)
    return Work(
        kind=job["kind"],
        run=job["run"],
        phase=job["phase"],
        settings=adjust.apply(settings, adjusted),
        model=job["model"],
        folder=Path(job["folder"]),
        run_folder=Path(job["run_folder"]),
        start_from=_path(job.get("start_from")),
        test_set=_path(job.get("test_set")),
        emit=emit,
        cancelled=cancel.exists,
        cache=home.cache,
    )


def _path(text: str | None) -> Path | None:
    return Path(text) if text else None


def _enter_evaluation(home: Home, work: Work, facts: dict[str, Any]) -> dict[str, Any]:
    """A row for the catalogue, and the verdict of the gate: {} without one, else {gate, and if it stops the line, why}."""
    names = ("test_set", "fingerprint", "metrics", "path", "scored_by", "speed", "modality_gap", "test_file", "created")
    row = {name: facts[name] for name in names if name in facts}
    records = Records(home.records)
    records.add_evaluation({"run": work.run, "phase": work.phase, "created": time.time(), **row})
    try:
        verdict = gate.after_evaluation(home, records, work.run, work.phase, work.settings, facts["test_set"])
    except ConfigError as error:  # the scores stand; only this comparison cannot be made
        print(f"warning: the gate has no verdict: {error}", file=sys.stderr)
        return {}
    if verdict is None:
        return {}
    print(f"gate {verdict['verdict'].upper()}: {'; '.join(verdict['reasons'])}")
    if verdict["verdict"] != gate.FAILED_WORD or not work.settings.evaluate.gate.stop:
        return {"gate": verdict}
    reason = f"the gate of {work.phase} failed: {'; '.join(verdict['reasons'])}"
    return {"gate": verdict, "reason": reason, "stops": True}


class Reporter:
    """Writes events, and for the ones a reader of log.txt waits for a line of text. stage: where the job is."""

    def __init__(self, write: ev.Emit):
        self._write = write
        self._printed = 0.0
        self.stage = ""

    def __call__(self, event: ev.Event) -> None:
        self._write(event)
        if isinstance(event, ev.Stage):
            self.stage = event.name
        elif isinstance(event, ev.PhaseStarted):
            self.stage = "training"
            print(show.stamp(time.time()), f"ready after {time.time() - psutil.Process().create_time():.1f} s")
        line = show.line(event)
        if line is None:
            return
        now = time.monotonic()
        if isinstance(event, show.FREQUENT) and now - self._printed < PRINT_EVERY and not show.is_last(event):
            return
        self._printed = now
        print(show.stamp(time.time()), line)


if __name__ == "__main__":
    faulthandler.enable()
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    sys.stdout.reconfigure(line_buffering=True, errors="replace")
    sys.exit(main(sys.argv[1]))
