"""HDF5 with one string array per field, in slices; and one sentence for files of video features. Light."""

import json
from collections.abc import Iterator
from pathlib import Path

from engine.corpus.formats.rows import Found, Options, Refused, Row

SLICE = 512
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
FEATURES = ("features", "gtscore", "user_summary", "change_points", "n_frames", "picks")


def read(path: Path, options: Options) -> Iterator[Found]:
    """Rows of the string arrays of a file. Damaged files make h5py raise almost anything; all of it is a refusal."""
    import h5py  # 0.2 s; only needed here

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
