"""HDF5 with one string array per field, in slices; and one sentence for files of video features. Light."""

import json
import os
import resource
import signal
from collections.abc import Iterator
from pathlib import Path

from engine.corpus.formats.rows import Found, Options, Refused, Row

SLICE = 32
BROKEN = (
    OSError,
    RuntimeError,
    KeyError,
    ValueError,
    TypeError,
    OverflowError,
    MemoryError,
    AttributeError,
    IndexError,
)
SECONDS = 0.3  # of processor time for one slice, or for sending a row; sound files need some milliseconds
GIB = 2**30  # of memory that a slice may take: damaged lengths ask for any amount
KINDS = {kind.__name__: kind for kind in (Row, Refused)}
FEATURES = ("features", "gtscore", "user_summary", "change_points", "n_frames", "picks")


def read(path: Path, options: Options) -> Iterator[Found]:
    """Rows of the string arrays of a file.

    The HDF5 library loops for ever, or dies, on some damaged files, where no exception reaches. So a child process reads
    and sends what it finds; it is ended when a slice takes too long, and then the file is refused.
    """
    import h5py  # noqa: F401 - 0.2 s, paid once, before the fork

    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        _child(path, reading, writing)
    os.close(writing)
    try:
        with os.fdopen(reading, encoding="utf-8") as lines:
            for line in lines:
                kind, content = json.loads(line)
                yield KINDS[kind](*content)
        _, status = os.waitpid(child, 0)
        child = 0
        if status:
            yield Refused("file", "not a readable HDF5 file", "the HDF5 library cannot get through it: it is damaged")
    finally:
        if child:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)


def _child(path: Path, reading: int, writing: int) -> None:
    """Send every finding as a line. The timer counts processor time and ends the process, also inside the library.

    More memory than GIB is refused by the system, which the library reports as an error.
    """
    status = 1
    try:
        os.close(reading)
        signal.signal(signal.SIGPROF, signal.SIG_DFL)
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        _limit_memory()
        signal.setitimer(signal.ITIMER_PROF, SECONDS)
        with os.fdopen(writing, "w", encoding="utf-8") as lines:
            for found in _found(path):
                signal.setitimer(signal.ITIMER_PROF, SECONDS)
                lines.write(json.dumps([type(found).__name__, found]) + "\n")
                signal.setitimer(signal.ITIMER_PROF, SECONDS)
        status = 0
    except BrokenPipeError:
        status = 0
    finally:
        os._exit(status)


def _limit_memory() -> None:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    _, most = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + GIB, most))


def _found(path: Path) -> Iterator[Found]:
    """Damaged files make h5py raise almost anything; all of it is a refusal."""
    import h5py

    try:
        with h5py.File(path, "r") as file:
            groups = {name: item for name, item in file.items() if isinstance(item, h5py.Group)}
            arrays = {name: item for name, item in file.items() if isinstance(item, h5py.Dataset)}
            strings = {n: a for n, a in arrays.items() if h5py.check_string_dtype(a.dtype) and a.ndim == 1}
            if not strings:
                yield from _features(groups) if groups else [_textless(list(file))]
                return
            lengths = {name: len(array) for name, array in strings.items()}
            if len(set(lengths.values())) > 1:
                shown = ", ".join(f"{name} {length}" for name, length in lengths.items())
                yield Refused("file", "arrays differ in length", f"{shown}. Every field needs one entry per record")
                return
            if max(lengths.values()) > path.stat().st_size:
                yield Refused("file", "not a readable HDF5 file", "its arrays are longer than the file can hold")
                return
            yield from _rows(strings, next(iter(lengths.values())))
    except BROKEN as error:
        yield Refused("file", "not a readable HDF5 file", (str(error).splitlines() or [type(error).__name__])[0][:120])


def _rows(strings: dict, length: int) -> Iterator[Found]:
    if not length:
        yield Refused("file", "no records in it", "arrays of length 0")
    for start in range(0, length, SLICE):
        columns = {name: array[start : start + SLICE] for name, array in strings.items()}
        for number in range(min(SLICE, length - start)):
            yield _row(f"row {start + number + 1}", {name: column[number] for name, column in columns.items()})


def _row(where: str, cells: dict[str, bytes]) -> Found:
    try:
        content = {name: cell.decode("utf-8") for name, cell in cells.items() if cell}
        extra = json.loads(content.pop("extra", "{}"))
    except UnicodeDecodeError as error:
        return Refused(where, "not UTF-8", f"byte {error.start} of a field")
    except (ValueError, RecursionError):
        return Refused(where, "not valid JSON", "the field extra holds a JSON object")
    return Row(where, {**extra, **content} if isinstance(extra, dict) else content)


def _features(groups: dict) -> Iterator[Refused]:
    """A refusal for every video of a file of frame features, with what is wrong with it besides."""
    for name, group in groups.items():
        found = set(group)
        faults = [f"{key} is missing" for key in FEATURES if key not in found] if found & set(FEATURES) else []
        yield Refused(
            f"group {name}", "features, not text", "; ".join([*faults, *_disagree(group)]) or "give transcripts"
        )


def _disagree(group) -> list[str]:
    """Lengths that contradict each other in the layout of TVSum and SumMe: one score and pick per feature row."""
    sizes = {key: group[key].shape[0] for key in ("features", "gtscore", "picks") if key in group and group[key].shape}
    if sizes.get("features") == 0:
        return ["features has no frames"]
    return (
        ["lengths disagree: " + ", ".join(f"{k} {n}" for k, n in sizes.items())] if len(set(sizes.values())) > 1 else []
    )


def _textless(names: list[str]) -> Refused:
    return Refused("file", "no text in it", f"no array of strings (found {', '.join(names)[:80] or 'nothing'})")
