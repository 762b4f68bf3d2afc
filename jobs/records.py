"""The ledger of jobs and the catalogue of evaluations: TinyDB behind a file lock and atomic replace.

The default storage of TinyDB rewrites its file in place, so a second process can read half of it and a kill can
leave no valid JSON. Here a transaction holds a lock that the kernel frees on death, and the file is replaced whole.
"""

import contextlib
import fcntl
import json
import os
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from tinydb import TinyDB
from tinydb.storages import Storage
from tinydb.table import Document, Table

from engine import files
from engine.settings import ConfigError

QUEUED, RUNNING, DONE, FAILED, CANCELLED, BLOCKED = "queued", "running", "done", "failed", "cancelled", "blocked"
ENDED = (DONE, FAILED, CANCELLED, BLOCKED)
UNSUCCESSFUL = (FAILED, CANCELLED, BLOCKED)


@dataclass(frozen=True)
class Job:
    """A row of the ledger. Slow facts only: what a running job is doing stands in its events."""

    id: str
    kind: str  # base, phase, evaluate, fisher
    run: str
    phase: str | None = None  # the phase trained, or the one whose checkpoint is evaluated; "base" for the base
    state: str = QUEUED
    attempt: int = 0
    stalled: int = 0  # attempts in a row that were killed without a newer checkpoint or document
    progress: list | None = None  # what the last attempt had reached, to tell whether the next gets further
    priority: int = 0
    after: str | None = None
    owner: list | None = None  # [boot id, pid, start time] of the job's process
    created: float = 0.0
    started: float | None = None
    ended: float | None = None
    reason: str = ""
    remedy: str = ""
    settings: dict = field(default_factory=dict)  # small facts for display: steps, config file

    @property
    def pid(self) -> int | None:
        return self.owner[1] if self.owner else None


_JOB_FIELDS = {f.name for f in fields(Job)}


class AtomicJsonStorage(Storage):
    def __init__(self, path: str):
        self.path = Path(path)

    def read(self) -> dict | None:
        try:
            content = self.path.read_bytes()
        except FileNotFoundError:
            return None
        try:
            return json.loads(content)
        except ValueError:
            backup = backup_of(self.path)
            raise ConfigError(
                f"{self.path}: not valid JSON; something else wrote to it. The version before is {backup.name}: "
                f"cp {backup} {self.path}"
            ) from None

    def write(self, data: dict) -> None:
        with contextlib.suppress(FileNotFoundError):
            link = self.path.with_name(f".{self.path.name}.{os.getpid()}.bak")
            link.unlink(missing_ok=True)
            link.hardlink_to(self.path)  # the old version keeps a name; no second copy is written
            link.replace(backup_of(self.path))
        files.replace(self.path, json.dumps(data, allow_nan=False).encode())


def backup_of(path: Path) -> Path:
    return path.with_name(path.name + ".bak")


class KeyedTable(Table):
    """Ids are strings chosen by us; no query cache, because other processes write too."""

    document_id_class = str
    default_query_cache_capacity = 0


def _open(path: Path) -> TinyDB:
    database = TinyDB(str(path), storage=AtomicJsonStorage)
    database.table_class = KeyedTable
    return database


class Records:
    """All access to records.json. Reading needs no lock: the file is always one complete version."""

    def __init__(self, path: Path):
        self.path = path
        self._cached: tuple[tuple, dict[str, Job], dict[str, Any]] | None = None

    @contextlib.contextmanager
    def transaction(self) -> Iterator[TinyDB]:
        """Keeps every other thread and process out. Not to be nested."""
        with self.path.with_name(self.path.name + ".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield _open(self.path)

    # -- jobs ---------------------------------------------------------------------------------------------------

    def jobs(self) -> dict[str, Job]:
        """All jobs by id, in the order in which they were made. Read again only when the file changed."""
        return dict(self._content()[0])

    def _content(self) -> tuple[dict[str, Job], dict[str, Any]]:
        """(jobs, facts)."""
        try:
            stat = self.path.stat()
        except FileNotFoundError:
            return {}, {}
        version = (stat.st_ino, stat.st_mtime_ns, stat.st_size)
        cached = self._cached  # one look: another thread may put a newer one there
        if cached is None or cached[0] != version:
            database = _open(self.path)
            facts = {row.doc_id: row["value"] for row in database.table("facts").all()}
            self._cached = cached = (version, _jobs(database), facts)
        return cached[1:]

    def job(self, job_id: str) -> Job:
        """One job. Raises ConfigError for an unknown id."""
        jobs = self.jobs()
        if job_id not in jobs:
            known = f"The last is {next(reversed(jobs))}" if jobs else "There are none yet"
            raise ConfigError(f"job {job_id}: no such job. {known}; `hybridsum.py jobs` lists them")
        return jobs[job_id]

    def add(self, new: list[Job]) -> list[Job]:
        """Enter jobs; each gets the next serial number. `after: "#k"` means the k-th job of the same list."""
        with self.transaction() as database:
            number = 1 + max((int(i) for i in _jobs(database)), default=0)
            ids = [str(number + k) for k in range(len(new))]
            entered = []
            for job, job_id in zip(new, ids, strict=True):
                after = ids[int(job.after[1:])] if job.after and job.after.startswith("#") else job.after
                entered.append(replace(job, id=job_id, after=after, created=time.time()))
            database.table("jobs").insert_multiple(_document(job) for job in entered)
        return entered

    def change(self, job_id: str, expected: Iterable[str], **values: Any) -> bool:
        """Compare and set: False, and nothing changed, if the job is in none of the expected states."""
        with self.transaction() as database:
            table = database.table("jobs")
            document = table.get(doc_id=job_id)
            if document is None or document["state"] not in expected:
                return False
            table.update(values, doc_ids=[job_id])
            return True

    def end(
        self, job_id: str, expected: Iterable[str], state: str, reason: str = "", remedy: str = "", stops: bool = False
    ) -> bool:
        """Set a final state. Unless it is `done`, the jobs waiting for this one are blocked, in the same transaction;
        stops: they are blocked all the same, because its gate failed."""
        with self.transaction() as database:
            table = database.table("jobs")
            document = table.get(doc_id=job_id)
            if document is None or document["state"] not in expected:
                return False
            now = time.time()
            table.update({"state": state, "ended": now, "reason": reason, "remedy": remedy}, doc_ids=[job_id])
            if state != DONE or stops:
                _block_descendants(table, job_id)
            return True

    def requeue(self, job_id: str) -> list[str]:
        """Queue an unsuccessful job again, and the jobs it had blocked. Returns their ids; empty if it is not one."""
        with self.transaction() as database:
            table = database.table("jobs")
            jobs = _jobs(database)
            if jobs[job_id].state not in UNSUCCESSFUL:
                return []
            again = [job_id]
            for job in jobs.values():  # in the order of creation, so parents come first
                if job.after in again and job.state == BLOCKED:
                    again.append(job.id)
            fresh = {
                "state": QUEUED,
                "owner": None,
                "started": None,
                "ended": None,
                "reason": "",
                "remedy": "",
                "stalled": 0,
            }
            table.update(fresh, doc_ids=again)
            if (after := jobs[job_id].after) and jobs[after].state in UNSUCCESSFUL:
                _block(table, job_id, jobs[after])
                _block_descendants(table, job_id)
            return again

    # -- facts about the line -----------------------------------------------------------------------------------

    def fact(self, name: str) -> Any:
        """A single value kept beside the jobs: `paused` (why the line stands still), `boot` (boot id last served)."""
        return self._content()[1].get(name)

    def set_fact(self, name: str, value: Any) -> None:
        with self.transaction() as database:
            database.table("facts").upsert(Document({"value": value}, doc_id=name))

    # -- evaluations --------------------------------------------------------------------------------------------

    def add_evaluation(self, row: dict) -> None:
        """One summary row {run, phase, test_set, fingerprint, metrics, path, created}; replaces an older equal one."""
        with self.transaction() as database:
            database.table("evaluations").upsert(Document(row, doc_id=f"{row['run']}/{row['phase']}/{row['test_set']}"))

    def evaluations(
        self, run: str | None = None, phase: str | None = None, metric: str | None = None, since: float = 0.0
    ) -> list[dict]:
        """Summary rows: of a run, of a phase, of those that have a metric in some column, made since (unix seconds)."""
        rows = (dict(row) for row in _open(self.path).table("evaluations").all())
        return [
            row
            for row in rows
            if run in (None, row["run"])
            and phase in (None, row["phase"])
            and row["created"] >= since
            and (metric is None or any(metric in column for column in row["metrics"].values()))
        ]

    def replace_evaluations(self, rows: Iterable[dict]) -> None:
        """Put these summary rows in the place of all there are."""
        with self.transaction() as database:
            table = database.table("evaluations")
            table.truncate()
            for row in rows:
                table.upsert(Document(row, doc_id=f"{row['run']}/{row['phase']}/{row['test_set']}"))


def _jobs(database: TinyDB) -> dict[str, Job]:
    rows = sorted(database.table("jobs").all(), key=lambda row: int(row.doc_id))
    return {row.doc_id: Job(id=row.doc_id, **{k: v for k, v in row.items() if k in _JOB_FIELDS}) for row in rows}


def _document(job: Job) -> Document:
    content = asdict(job)
    return Document(content, doc_id=content.pop("id"))


def _block_descendants(table: Table, job_id: str) -> None:
    parents = [table.get(doc_id=job_id)]
    for parent in parents:
        for child in table.all():
            if child["after"] == parent.doc_id and child["state"] == QUEUED:
                _block(
                    table,
                    child.doc_id,
                    Job(id=parent.doc_id, **{k: parent[k] for k in ("kind", "run", "phase", "state")}),
                )
                parents.append(table.get(doc_id=child.doc_id))


def _block(table: Table, job_id: str, parent: Job) -> None:
    words = {
        FAILED: "which failed",
        CANCELLED: "which was cancelled",
        BLOCKED: "which is blocked",
        DONE: "whose gate failed",
    }
    reason = f"waits for job {parent.id} ({title(parent)}), {words.get(parent.state, f'which is {parent.state}')}"
    remedy = f"hybridsum.py retry {job_id if parent.state == DONE else parent.id}"  # the first goes on regardless
    table.update({"state": BLOCKED, "ended": time.time(), "reason": reason, "remedy": remedy}, doc_ids=[job_id])


def title(job: Job) -> str:
    """What a job does, in two words."""
    if job.kind == "phase":
        return job.phase or "phase"
    if job.kind in ("evaluate", "fisher"):
        return f"{job.kind} {job.phase}"
    return job.kind
