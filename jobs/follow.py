"""Watching jobs from the command line: their events as lines, their logs, and waiting for their end."""

import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from engine import events as ev
from jobs import show, steer
from jobs.home import Home
from jobs.records import DONE, ENDED, QUEUED, RUNNING, UNSUCCESSFUL, Records, title

POLL = 0.2
STEP_EVERY = 2.0  # seconds between two lines of progress
UNENDED = (QUEUED, RUNNING)

Say = Callable[[str], None]

_interrupted: list[int] = []  # signals of Ctrl-C since `interruptible` began


@contextmanager
def interruptible() -> Iterator[None]:
    """Inside, Ctrl-C ends a watch between two looks, as KeyboardInterrupt: nothing is half read or half said then, and it
    is not lost in a finalizer or an import, where Python may throw it."""
    _interrupted.clear()
    before = signal.signal(signal.SIGINT, lambda number, frame: _interrupted.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _look_up() -> None:
    if _interrupted:
        raise KeyboardInterrupt


def _pause() -> None:
    _look_up()
    time.sleep(POLL)
    _look_up()


def watch(home: Home, records: Records, ids: Sequence[str], say: Say) -> bool:
    """Print what the jobs report, one after the other, to their end. True if all ended `done`."""
    for job_id in ids:
        job = records.job(job_id)
        say(f"job {job_id}  {job.run}  {title(job)}")
        for stamped in _worth_a_line(_events(home, records, job_id, say)):
            _look_up()
            say(f"  {show.stamp(stamped.t)}  {show.plain(show.line(stamped.event))}")
    return all_done(records, ids, say)


def wait(home: Home, records: Records, ids: Sequence[str], say: Say) -> bool:
    """Return when all jobs have ended. True if all ended `done`; otherwise says which did not."""
    noted = ""
    while any(records.job(job_id).state not in ENDED for job_id in ids):
        noted = _note_standstill(home, records, noted, say)
        _pause()
    return all_done(records, ids, say)


def all_done(records: Records, ids: Sequence[str], say: Say) -> bool:
    bad = [job for job_id in ids if (job := records.job(job_id)).state != DONE]
    for job in bad:
        say(show.plain(f"job {job.id} ({job.run}, {title(job)}) {job.state}: {job.reason}"))
        if job.remedy:
            say(show.plain(f"  {job.remedy}"))
    return not bad


def log_text(home: Home, records: Records, job_id: str, follow: bool) -> Iterator[str]:
    """The job's log, made safe for a terminal; with `follow`, further text as it comes, to the job's end."""
    offset, rest = 0, ""
    while True:
        ended = records.job(job_id).state in ENDED  # looked at first, so that nothing written before it is missed
        text, offset = _read_from(home, job_id, offset)
        whole, newline, rest = (rest + text).rpartition("\n")
        if newline:
            yield show.plain_lines(whole) + "\n"
        if ended or not follow:
            if rest:
                yield show.plain_lines(rest) + "\n"
            return
        _pause()


def _read_from(home: Home, job_id: str, offset: int) -> tuple[str, int]:
    try:
        with home.log(job_id).open("rb") as file:
            file.seek(offset)
            content = file.read()
    except FileNotFoundError:
        return "", offset
    return content.decode(errors="replace"), offset + len(content)


def _events(home: Home, records: Records, job_id: str, say: Say) -> Iterator[ev.Stamped]:
    """A job's events from the first to the last, as they come."""
    tail, noted = ev.Tail(home.events(job_id)), ""
    while True:
        ended = records.job(job_id).state in ENDED
        yield from tail()
        if ended:
            return
        noted = _note_standstill(home, records, noted, say)
        _pause()


def _worth_a_line(events: Iterator[ev.Stamped]) -> Iterator[ev.Stamped]:
    shown = 0.0
    for stamped in events:
        if show.line(stamped.event) is None:
            continue
        if isinstance(stamped.event, ev.Ended) and stamped.event.outcome in UNSUCCESSFUL:
            continue  # said at the end, with the remedy
        if isinstance(stamped.event, show.FREQUENT):
            if stamped.t - shown < STEP_EVERY and not show.is_last(stamped.event):
                continue
            shown = stamped.t
        yield stamped


def _note_standstill(home: Home, records: Records, noted: str, say: Say) -> str:
    """Say once why nothing moves: no runner, or a paused line."""
    found = steer.status(home, records)
    note = ""
    if found["state"] in (steer.STOPPED, steer.LOST):
        note = "no runner is alive, so nothing is started: hybridsum.py runner start"
    elif found["paused"] and not found["jobs"] and any(job.state == QUEUED for job in records.jobs().values()):
        note = f"the line is paused ({found['paused']}): hybridsum.py resume"
    if note and note != noted:
        say(note)
    return note or noted
