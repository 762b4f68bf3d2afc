"""The summaries of a data set of several tasks, with the rows of its embeddings that belong to them. Light.

Parts (train, val, test) are files whose names say so: `train.jsonl` with `train_embeddings.safetensors`. Row n of every tensor
belongs to entry n, or to the entry whose `embedding_index` is n. Rows are copied byte by byte, whatever their type.
"""

import json
import math
import os
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from engine import files
from engine.corpus.formats.json_rows import read as json_rows
from engine.corpus.formats.rows import Options, Refused, Warned
from engine.settings import ConfigError

TASK = "summary"
INDEX = "embedding_index"
PART = re.compile(r"(?:^|[_.-])(train|val|valid|validation|dev|test)(?:[_.-]|$)")
PARTS = {"valid": "val", "validation": "val", "dev": "val"}
LARGEST_HEADER = 100 << 20


@dataclass
class Part:
    """What came of a part. tasks: entries per task; refused: entries per reason."""

    name: str
    entries: int = 0
    kept: int = 0
    tasks: Counter = field(default_factory=Counter)
    refused: Counter = field(default_factory=Counter)
    embeddings: int = 0  # rows before
    refusals: list[str] = field(default_factory=list)

    def facts(self) -> dict[str, Any]:
        return {
            "entries": self.entries, "kept": self.kept, "tasks": dict(sorted(self.tasks.items())),
            "refused": dict(sorted(self.refused.items())), "embeddings_before": self.embeddings,
        }  # fmt: skip


class Tensor(NamedTuple):
    """Where a tensor lies in its file: bytes `start` to `start + rows * width` of the data."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    width: int  # bytes of a row


def part_of(path: Path) -> str | None:
    """train, val or test, by the name of a file."""
    match = PART.search(path.stem.lower())
    return PARTS.get(match.group(1), match.group(1)) if match else None


def run(inputs: list[Path], embeddings: Path, out: Path) -> list[Part]:
    """Write synthesis/PART_synthesis.jsonl and embeddings/PART_embeddings.safetensors below `out`. Raises ConfigError."""
    parts = _parts(inputs, embeddings)
    for folder in ("synthesis", "embeddings"):
        (out / folder).mkdir(parents=True, exist_ok=True)
    return [_filtered(path, name, tensors, out) for name, (path, tensors) in parts.items()]


def _parts(inputs: list[Path], embeddings: Path) -> dict[str, tuple[Path, Path]]:
    """{part: (entries, embeddings)}. Raises ConfigError for all that is missing or given twice."""
    found: dict[str, tuple[Path, Path]] = {}
    mistakes = []
    given = [path for each in inputs for path in (sorted(each.glob("*.jsonl")) if each.is_dir() else [each])]
    rows = {part_of(path): path for path in sorted(embeddings.glob("*.safetensors"))}
    for path in given:
        name = part_of(path)
        if not path.is_file():
            mistakes.append(f"{path}: no such file")
        elif name is None:
            mistakes.append(f"{path}: its name says no part. Call it train.jsonl, val.jsonl or test.jsonl")
        elif name in found:
            mistakes.append(f"{path}: {name} is given already, by {found[name][0]}")
        elif name not in rows:
            mistakes.append(f"--embeddings {embeddings}: no {name}_embeddings.safetensors for {path}")
        else:
            found[name] = (path, rows[name])
    if not given:
        mistakes.append(f"{', '.join(map(str, inputs))}: no .jsonl file in it")
    if mistakes:
        raise ConfigError(*mistakes)
    return found


def _filtered(path: Path, name: str, source: Path, out: Path) -> Part:
    part = Part(name)
    tensors = header(source)
    lengths = {tensor.shape[0] for tensor in tensors}
    if len(lengths) != 1:
        raise ConfigError(f"{source}: its tensors have {sorted(lengths)} rows; all need a row per entry")
    part.embeddings = lengths.pop()
    synthesis = out / "synthesis" / f"{name}_synthesis.jsonl"
    temporary = synthesis.with_name(f".{synthesis.name}.{os.getpid()}.tmp")
    chosen: list[int] = []
    try:
        with temporary.open("wb") as file:
            for entry, row in _kept(path, part):
                file.write(json.dumps({**entry, INDEX: len(chosen)}, ensure_ascii=False).encode() + b"\n")
                chosen.append(row)
        if not any(INDEX in json.loads(line) for line in _head(path)) and part.entries != part.embeddings:
            raise ConfigError(
                f"{source}: {part.embeddings:,} rows, but {path} has {part.entries:,} entries, and they name no {INDEX}. "
                "Which row belongs to which cannot be known"
            )
        _copy(source, tensors, chosen, out / "embeddings" / f"{name}_embeddings.safetensors")
        files.sync_file(temporary)
        temporary.replace(synthesis)
        files.sync_folder(synthesis.parent)
    finally:
        temporary.unlink(missing_ok=True)
    return part


def _head(path: Path) -> Iterator[bytes]:
    """The first line that is an object."""
    for found in json_rows(path, Options()):
        if not isinstance(found, Refused | Warned):
            yield json.dumps(found.content, default=str).encode()
            return


def _kept(path: Path, part: Part) -> Iterator[tuple[dict, int]]:
    """(entry, its row) of every summary; counts the rest by task, and what is no entry by reason."""
    seen: set[int] = set()
    for found in json_rows(path, Options()):
        if isinstance(found, Warned):
            continue
        number, part.entries = part.entries, part.entries + 1
        if isinstance(found, Refused):
            _refuse(part, path, found)
            continue
        task = found.content.get("task_type")
        part.tasks[task if isinstance(task, str) else "(none)"] += 1
        if task != TASK:
            continue
        row = found.content.get(INDEX, number)
        if isinstance(row, bool) or not isinstance(row, int) or not 0 <= row < part.embeddings:
            _refuse(part, path, Refused(found.where, "no such embedding", f"row {row!r} of {part.embeddings:,}"))
        elif row in seen:
            _refuse(part, path, Refused(found.where, "embedding used twice", f"row {row}"))
        else:
            seen.add(row)
            part.kept += 1
            yield found.content, row


def _refuse(part: Part, path: Path, refusal: Refused) -> None:
    part.refused[refusal.reason] += 1
    part.refusals.append(f"{path}: {refusal.where}: {refusal.reason} ({refusal.detail})")


def header(path: Path) -> list[Tensor]:
    """The tensors of a safetensors file (8 bytes length, JSON, data). Raises ConfigError if it is none."""
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if length > LARGEST_HEADER:
                raise ValueError("a header of impossible length")
            described = json.loads(file.read(length))
        size = path.stat().st_size - 8 - length
        tensors = [_tensor(name, about, size) for name, about in described.items() if name != "__metadata__"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ConfigError(f"{path}: not a readable safetensors file ({str(error)[:80]})") from None
    if not tensors:
        raise ConfigError(f"{path}: no tensor in it")
    return [tensor._replace(start=tensor.start + 8 + length) for tensor in tensors]


def _tensor(name: str, about: dict, size: int) -> Tensor:
    begin, end = about["data_offsets"]
    shape = tuple(about["shape"])
    if not shape or not 0 <= begin <= end <= size or (shape[0] and (end - begin) % shape[0]):
        raise ValueError(f"tensor {name} does not fit the file")
    return Tensor(name, about["dtype"], shape, begin, (end - begin) // shape[0] if shape[0] else 0)


def _copy(source: Path, tensors: list[Tensor], rows: list[int], target: Path) -> None:
    """The chosen rows of every tensor, in their new order."""
    described, offset = {}, 0
    for tensor in tensors:
        described[tensor.name] = {
            "dtype": tensor.dtype,
            "shape": [len(rows), *tensor.shape[1:]],
            "data_offsets": [offset, offset + tensor.width * len(rows)],
        }
        offset += tensor.width * len(rows)
    head = json.dumps(described).encode()
    head += b" " * (math.ceil(len(head) / 8) * 8 - len(head))  # the format wants the data aligned
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        with source.open("rb") as given, temporary.open("wb") as file:
            file.write(len(head).to_bytes(8, "little") + head)
            for tensor in tensors:
                for row in rows:
                    given.seek(tensor.start + row * tensor.width)
                    file.write(given.read(tensor.width))
        files.sync_file(temporary)
        temporary.replace(target)
        files.sync_folder(target.parent)
    finally:
        temporary.unlink(missing_ok=True)
