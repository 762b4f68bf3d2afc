"""Locks that the kernel frees on death, and names of processes that a reused pid cannot fake."""

import contextlib
import fcntl
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
Identity = list  # [boot id, pid, start time]


def locked(path: Path) -> IO | None:
    """The open file holds the lock until it, and every copy a child inherited, is closed. None if somebody has it."""
    file = path.open("a")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return None
    return file


def keep_only(paths: Iterable[Path]) -> None:
    """Of this process's open files let only these, and the three standard ones, live on in a program it becomes."""
    kept = [path.stat() for path in paths]
    for entry in list(Path("/proc/self/fd").iterdir()):
        descriptor = int(entry.name)
        with contextlib.suppress(OSError):  # the descriptor of the listing itself is closed already
            found = os.fstat(descriptor)
            os.set_inheritable(descriptor, descriptor <= 2 or any(os.path.samestat(found, k) for k in kept))


def is_held(path: Path) -> bool:
    """Whether some process holds the lock now. Makes no file; holds a shared lock for an instant itself."""
    try:
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


def boot_id() -> str:
    return BOOT_ID.read_text().strip()


def identity(pid: int) -> Identity | None:
    """Boot, pid and start time name one process for ever; None once it is dead or a zombie."""
    try:
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if state in "ZX" else [boot_id(), pid, fields[18]]


def is_alive(owner: Identity | None) -> bool:
    return bool(owner) and identity(owner[1]) == list(owner)


def holders(path: Path, session: int | None) -> Iterator[int]:
    """Pids of a session that have the file open: those to which a lock was handed down. None: of any that it leads."""
    wanted = str(path.resolve())
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and _has_open(entry, wanted):
            pid = int(entry.name)
            if _session(pid) == (session or pid):
                yield pid


def _has_open(process: Path, wanted: str) -> bool:
    try:
        return any(str(descriptor.readlink()) == wanted for descriptor in (process / "fd").iterdir())
    except OSError:  # it ended meanwhile, or belongs to somebody else
        return False


def _session(pid: int) -> int | None:
    try:
        return os.getsid(pid)
    except ProcessLookupError:
        return None


def leader(path: Path) -> int | None:
    """The process that was started with the lock: the one of its holders that leads its session."""
    return next((pid for pid in holders(path, session=None) if pid != os.getpid()), None)
