"""From any supported file to records: read, normalise, refuse or warn, find duplicates, split, write. Light.

Two passes: the first reads the inputs and spools what is good into a hidden file, the second divides and writes it. Memory
holds some 80 bytes a record, so the size of the inputs does not matter.
"""

import json
import os
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from engine.corpus import collect, normalise
from engine.corpus.duplicates import Clusters, Documents, Seen, key
from engine.corpus.formats import shapes, table
from engine.corpus.formats.rows import Options, Refused, Row, Warned, name_of
from engine.corpus.records import FIELDS
from engine.corpus.writing import Writer
from engine.settings import ConfigError

PARTS = {1: ("",), 2: ("train", "val"), 3: ("train", "val", "test")}
SHOWN = 5  # lines per file and reason; the rest is in the report file
MANY = 10_000  # records between two signs of life


@dataclass(frozen=True)
class Request:
    """What `prepare` is asked for. split: shares that add up to 1, or nothing."""

    inputs: tuple[Path, ...]
    kind: str
    out: Path
    mapping: dict[str, str] = field(default_factory=dict)
    split: tuple[float, ...] = ()
    strict: bool = False
    join: bool = False
    make_ids: bool = False
    without_summary: bool = False
    drop_duplicates: bool = False
    max_refused: float = 1.0  # share of what was read; above it nothing is written
    options: Options = Options()


@dataclass
class Report:
    """Counts of records, and lines for a person. failed: why nothing was written."""

    read: int = 0
    written: int = 0
    refused: Counter = field(default_factory=Counter)
    warnings: Counter = field(default_factory=Counter)
    files: dict[str, int] = field(default_factory=dict)
    out: str = ""
    report: str = ""
    failed: str = ""

    def facts(self) -> dict[str, Any]:
        """The JSON value of the command."""
        return {
            "read": self.read, "written": self.written, "refused": dict(sorted(self.refused.items())),
            "warnings": dict(sorted(self.warnings.items())), "out": self.out, "files": self.files, "report": self.report,
        }  # fmt: skip


class _Stop(Exception):
    """The first refusal of a strict run."""


def check(request: Request) -> None:
    """Mistakes in the call itself. Raises ConfigError."""
    mistakes = [f"{path}: no such file or folder" for path in request.inputs if not path.exists()]
    if request.kind not in normalise.KINDS:
        mistakes.append(f"--as {request.kind}: unknown. Use one of {', '.join(normalise.KINDS)}")
    if request.split and (
        len(request.split) not in PARTS or min(request.split) <= 0 or abs(sum(request.split) - 1) > 1e-6
    ):
        mistakes.append("--split: give two or three shares above 0 that add up to 1, such as 0.8/0.1/0.1")
    if not request.out.parent.is_dir():
        mistakes.append(f"--out {request.out}: no folder {request.out.parent}. Make it first: mkdir -p")
    elif request.out.is_dir():
        mistakes.append(f"--out {request.out}: a folder. Name a file, such as {request.out}/records.jsonl")
    elif request.out.suffix.lower() not in (".jsonl", ".h5", ".hdf5"):
        mistakes.append(f"--out {request.out}: name it .jsonl or .h5")
    outputs = {path.resolve() for path in destinations(request).values()}
    mistakes += [f"{path}: would be overwritten by --out" for path in request.inputs if path.resolve() in outputs]
    if mistakes:
        raise ConfigError(*mistakes)


def destinations(request: Request) -> dict[str, Path]:
    """{part: file}; one part without a name where nothing is split."""
    out = request.out
    return {
        part: out.with_name(f"{out.stem}_{part}{out.suffix}") if part else out
        for part in PARTS.get(len(request.split) or 1, ("",))
    }


def run(request: Request, say: Callable[[str], None]) -> Report:
    """Prepare; `say` gets lines for a person. Raises ConfigError for mistakes in the call, never for what files hold."""
    check(request)
    report = Report(out=str(request.out))
    with tempfile.TemporaryDirectory(dir=request.out.parent, prefix=".prepare-") as folder:
        first = _First(request, report, Path(folder), say)
        try:
            first.run()
        except _Stop as stop:
            report.failed = f"--strict: {stop}"
        else:
            report.failed = _unusable(request, report, first.good)
        if not report.failed:
            _write(request, report, first, say)
        first.tell_the_rest()
        _keep_log(request, report, first)
        first.close()
    return report


def _unusable(request: Request, report: Report, good: int) -> str:
    if not good:
        return f"no records in {', '.join(map(str, request.inputs[:5]))}: nothing is written"
    share = sum(report.refused.values()) / max(1, report.read)
    if share > request.max_refused:
        return f"{share:.1%} of {report.read:,} were refused, more than --max-refused {request.max_refused:g}: nothing is written"
    return ""


class _First:
    """The first pass: judges every row, counts, tells, and spools the good ones."""

    def __init__(self, request: Request, report: Report, folder: Path, say: Callable[[str], None]) -> None:
        self._request, self._report, self._say = request, report, say
        self._rules = normalise.Rules(normalise.KINDS[request.kind], request.without_summary, request.make_ids)
        self._ids, self._texts = Seen(), Seen()
        self._told: Counter = Counter()
        self._manifests: dict[Path, dict] = {}
        self._pending: set[str] = set()  # warnings about the record to come
        self.documents = Documents(folder)
        self.spool = (folder / "spool").open("w+b")
        self.log = (folder / "report").open("w+b")
        self.names: set[str] = set()
        self.extra, self.good = False, 0
        self.pairs: dict[int, list[tuple[int, str]]] = {}  # key of the pair -> (record, modality)

    def close(self) -> None:
        for file in (self.spool, self.log, self.documents):
            file.close()

    def run(self) -> None:
        for source in table.sources(list(self._request.inputs)):
            for found in table.read(source, self._request.options):
                self._take(found, source.path)
            self._pending.clear()

    def tell_the_rest(self) -> None:
        """How often what was told in a few lines happened besides."""
        for (path, reason, _), count in self._told.items():
            if count > SHOWN:
                self._say(f"{path}: {reason}: {count - SHOWN:,} more")

    def _take(self, found: Row | Refused | Warned, path: Path) -> None:
        if isinstance(found, Warned):
            self._warn(found, path)
        elif isinstance(found, Refused):
            self._refuse(found, path)
        else:
            for shape in self._shapes(found, path):
                self._judge(shape, found, path)

    def _shapes(self, row: Row, path: Path) -> list[shapes.Shaped]:
        if row.ready:
            return [shapes.Shaped({**dict(collect.known(path, self._manifests)), **row.content})]
        try:
            found = shapes.shaped(row.content, self._request.mapping, self._request.join)
        except RecursionError:
            found = "nested too deeply"
        if isinstance(found, str):
            self._refuse(
                Refused(row.where, "keys of --map missing" if found.startswith("no key") else found, found), path
            )
            return []
        if len(found) > 1:  # a meeting with its queries: ids and the group are the file's
            meeting = found[0].content.get("group") or (
                path.stem
                if row.where.startswith(("file", "object 1"))
                else f"{path.stem}-{row.where.replace(' ', '-')}"
            )
            found = [
                s._replace(content={**s.content, "id": f"{meeting}-{s.content['id']}", "group": meeting}) for s in found
            ]
        return found

    def _judge(self, shape: shapes.Shaped, row: Row, path: Path) -> None:
        content, warnings = normalise.record(shape, row, name_of(path), self._rules)
        for warning in warnings:
            self._warn(warning, path)
        if not isinstance(content, Refused):
            content = self._new(content, row, path)
        if isinstance(content, Refused):
            self._refuse(content, path)
        else:
            self._accept(content, row, path)

    def _new(self, content: dict, row: Row, path: Path) -> dict | Refused:
        """The record if its id is new. Ids made of a file's name get its suffix where that is not enough."""
        names = [content["id"], path.name, str(path)] if row.ready else [content["id"]]
        for name in names:
            if self._ids.add(key(name.strip().casefold())):
                if name != content["id"]:
                    self._warn(
                        Warned(row.where, "id with its suffix", f"{content['id']!r} is taken; it is {name!r}"), path
                    )
                return content | {"id": name}
        return Refused(
            row.where, "id used twice", f"{content['id'][:60]!r}, whatever its case and blanks; the first one is kept"
        )

    def _accept(self, content: dict, row: Row, path: Path) -> None:
        if not self._texts.add(key(" ".join(content["source"].split()).casefold())):
            if self._request.drop_duplicates:
                self._refuse(Refused(row.where, "text of an earlier record", f"id {content['id'][:60]!r}"), path)
                return
            self._warn(Warned(row.where, "text of an earlier record", "both are kept, in one part of a split"), path)
        if self._request.kind == "pairs":
            pair = content.get("pair_id")
            if not pair or content["modality"] not in ("paper", "video"):
                why = "no pair_id" if not pair else f"modality {content['modality'][:20]!r}"
                self._refuse(Refused(row.where, "no side of a pair", why), path)
                return
            self.pairs.setdefault(key(pair.strip()), []).append((self.good, content["modality"]))
        self._report.warnings.update(self._pending)
        self._pending.clear()
        self._report.read += 1
        self.good += 1
        self.names.update(name for name in FIELDS if name in content)
        self.extra = self.extra or any(name not in FIELDS for name in content)
        self.documents.add(content["source"], content.get("group"), content.get("pair_id"))
        self.spool.write(json.dumps([str(path), row.where, content], ensure_ascii=False).encode() + b"\n")
        if self.good % MANY == 0:
            self._say(f"{self.good:,} records so far, {sum(self._report.refused.values()):,} refused")

    def _warn(self, warning: Warned, path: Path) -> None:
        self._pending.add(warning.reason)
        self._tell("warning", warning, path)

    def _refuse(self, refusal: Refused, path: Path) -> None:
        self.refuse(refusal, path)
        self._pending.clear()
        if self._request.strict:
            raise _Stop(_sentence(refusal, path))

    def refuse(self, refusal: Refused, path: Path | str) -> None:
        self._report.read += 1
        self._report.refused[refusal.reason] += 1
        self._tell("refused", refusal, path)

    def _tell(self, what: str, found: Refused | Warned, path: Path | str) -> None:
        entry = {"what": what, "file": str(path), "where": found.where, "reason": found.reason, "detail": found.detail}
        self.log.write(json.dumps(entry).encode() + b"\n")
        guess = found.detail if found.reason == "keys guessed" else ""  # one line says it for the whole file
        self._told[str(path), found.reason, guess] += 1
        if self._told[str(path), found.reason, guess] <= (1 if guess else SHOWN):
            self._say(f"{what}: {_sentence(found, path)}")


def _sentence(found: Refused | Warned, path: Path | str) -> str:
    return f"{path}: {found.where}: {found.reason}{f' ({found.detail})' if found.detail else ''}"


def _write(request: Request, report: Report, first: _First, say: Callable[[str], None]) -> None:
    """The second pass: divide what was spooled, and put the files in their places."""
    clusters = first.documents.clusters()
    broken = _broken_pairs(first.pairs) if request.kind == "pairs" else {}
    if near := int(clusters.near.sum()):
        report.warnings["near-duplicate or shared group"] += near
        say(
            f"{near:,} records belong to others of another group (nearly equal texts, sides of a pair): "
            "they share a group now, and a part of any split"
        )
    writers = {
        part: Writer(path, first.names | ({"group"} if near else set()), first.extra or bool(near))
        for part, path in destinations(request).items()
    }
    try:
        for content, part in _divided(request, first, clusters, broken):
            writers[part].add(content)
    except BaseException:
        for writer in writers.values():
            writer.drop()
        raise
    report.written = sum(writer.count for writer in writers.values())
    if not report.written:
        report.failed = "no whole pair of a paper and a video: nothing is written"
    for part, writer in writers.items():
        if writer.count:
            writer.done()
            report.files[str(writer.path)] = writer.count
        else:
            writer.drop()
            writer.path.unlink(missing_ok=True)  # one of an earlier run would be taken for this one's
            say(f"{part or 'out'}: nothing falls to it, {writer.path} is not written")


def _divided(request: Request, first: _First, clusters: Clusters, broken: dict[int, str]) -> Iterator[tuple[dict, str]]:
    """(record, part) in the order of the inputs; refuses sides of pairs that are not whole."""
    parts, chosen = list(destinations(request)), _parts(clusters, request.split or (1.0,))
    first.spool.seek(0)
    for number, line in enumerate(first.spool):
        path, where, content = json.loads(line)
        if number in broken:
            first.refuse(Refused(where, "no whole pair", f"{content['pair_id'][:40]!r}: {broken[number]}"), path)
            first._report.read -= 1  # it was counted when it was spooled
            continue
        if clusters.near[number]:
            given = content.get("group")
            content["group"] = f"near-{int(clusters.keys[number]):016x}"
            if given:
                content["group_given"] = given
        yield content, parts[chosen[number]]


def _parts(clusters: Clusters, shares: tuple[float, ...]) -> np.ndarray:
    """(n,) the part of each record. It follows from the hash of its cluster, so it stays when records are added.

    Where a part would come out empty the clusters are cut by rank instead, so that each part has one; with fewer
    clusters than parts all records are for training.
    """
    chosen = np.minimum(np.searchsorted(np.cumsum(shares), clusters.positions, side="right"), len(shares) - 1)
    if len(set(chosen.tolist())) == len(shares):
        return chosen
    positions, ranks = np.unique(clusters.positions, return_inverse=True)
    if len(positions) < len(shares):
        return np.zeros_like(chosen)
    ends = [max(n, round(share * len(positions))) for n, share in enumerate(np.cumsum(shares)[:-1], 1)]
    ends = [min(end, len(positions) - (len(shares) - n)) for n, end in enumerate(ends, 1)]
    return np.searchsorted(np.array(ends), ranks, side="right")


def _broken_pairs(pairs: dict[int, list[tuple[int, str]]]) -> dict[int, str]:
    """{record: why its pair is not one paper and one video}."""
    broken = {}
    for members in pairs.values():
        sides = sorted(modality for _, modality in members)
        if sides != ["paper", "video"]:
            why = (
                f"only a {sides[0]}"
                if len(sides) == 1
                else f"papers: {sides.count('paper')}, videos: {sides.count('video')}"
            )
            broken |= {number: why for number, _ in members}
    return broken


def _keep_log(request: Request, report: Report, first: _First) -> None:
    """All refusals and warnings, one JSON object a line, beside the records."""
    path = request.out.with_name(f"{request.out.stem}.report.jsonl")
    if not report.refused and not report.warnings:
        path.unlink(missing_ok=True)
        return
    first.log.flush()
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with temporary.open("wb") as file:
        first.log.seek(0)
        while piece := first.log.read(1 << 20):
            file.write(piece)
    temporary.replace(path)
    report.report = str(path)
