"""The line of jobs that are ready: Huey on SQLite. The only file that imports huey.

A message is a job id as JSON; whoever can write the file cannot run code by it. Losing the file loses nothing,
because the ledger is the truth and the runner announces again whatever it calls queued.
"""

import contextlib
import json
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from huey import SqliteHuey
from huey.consumer import Consumer
from huey.registry import Message
from huey.serializer import Serializer

from jobs.home import Home

TASK = "perform"
log = logging.getLogger(__name__)


class JsonMessages(Serializer):
    """Messages as JSON objects with plain values. Everything else is refused, in both directions."""

    def _serialize(self, data: Any) -> bytes:
        if not isinstance(data, Message):
            raise TypeError(f"{type(data).__name__} is not a queue message")
        return json.dumps({name: value for name, value in data._asdict().items() if value}, allow_nan=False).encode()

    def _deserialize(self, data: bytes) -> Message:
        content = json.loads(data)
        if not isinstance(content, dict) or not isinstance(content.get("args"), list):
            raise ValueError("not a message with a list of arguments")
        defaults = {"retries": 0, "retry_delay": 0, "kwargs": {}}
        return Message(**(defaults | content | {"args": tuple(content["args"])}))


class Line:
    """Ids of ready jobs, in the order in which Huey hands them out: priority first, then age."""

    def __init__(self, home: Home, action: Callable[[str], None] | None = None):
        self._path = home.queue
        self._make_private()
        self._performs = action is not None
        # A journal that is deleted, not a write-ahead log: nothing else lies beside the file and is mapped by those who
        # have it open, so it can be deleted at any time.
        self._huey = SqliteHuey(
            "hybridsum", filename=str(home.queue), serializer=JsonMessages(), results=False, journal_mode="delete"
        )
        self._inode = _inode(self._path)

        def perform(job_id: str) -> None:
            if action is None:
                raise RuntimeError("this process only looks at the line; jobs are performed by the runner")
            action(job_id)

        # Huey names a task after the module that defines it and loses messages with a name it does not know.
        # Defined here, the name is the same whichever program was started.
        self._task = self._huey.task(name=TASK)(perform)

    def _make_private(self) -> None:
        """Made only if it is missing: closing an open SQLite file would drop the locks of all connections to it."""
        with contextlib.suppress(FileExistsError):
            os.close(os.open(self._path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))

    def enqueue(self, job_id: str, priority: int = 0) -> None:
        self._huey.enqueue(self._task.s(job_id, priority=priority))

    def pending(self) -> list[str]:
        """The ids in the line. A message that is not one of ours is left for the worker, which drops and logs it."""
        found = []
        for data in self._huey.storage.enqueued_items():
            try:
                found.append(self._huey.serializer.deserialize(data).args[0])
            except (ValueError, TypeError, IndexError):
                log.warning("%s: a message that is not ours stands in the line", self._path)
        return found

    def flush(self) -> None:
        self._huey.storage.flush_queue()

    def heal(self) -> None:
        """Open the file anew if somebody deleted or replaced it. Only the runner's line makes a new one."""
        if self._performs:
            self._make_private()
        inode = _inode(self._path)
        if inode not in (None, self._inode):
            log.warning("%s was deleted; the line begins empty", self._path)
            self._huey.storage = self._huey.create_storage()
            self._inode = inode

    def consumer(self, workers: int) -> Consumer:
        """Threads that take ids from the line; threads, because process workers outlive a killed consumer."""
        return self._huey.create_consumer(
            workers=workers, worker_type="thread", periodic=False, max_delay=0.3, scheduler_interval=60
        )


def _inode(path: Path) -> int | None:
    try:
        return path.stat().st_ino
    except FileNotFoundError:
        return None
