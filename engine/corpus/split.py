"""From the files of section `data` to what is trained on, what the Fisher sees, and what is judged. Light."""

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from engine import files
from engine.corpus.records import Record, read
from engine.settings import ConfigError, Data

MODALITIES = {"papers": "paper", "videos": "video"}
COLUMNS = {
    "paper": "papers",
    "video": "videos",
    "document": "general",
}  # modality of a record -> column of the forgetting table


@dataclass(frozen=True)
class Pair:
    """A paper and a talk on the same subject: one draw with two documents."""

    paper: Record
    video: Record


@dataclass(frozen=True)
class Corpus:
    papers: tuple[Record, ...] = ()
    videos: tuple[Record, ...] = ()
    pairs: tuple[Pair, ...] = ()
    plain: tuple[Record, ...] = ()  # documents without summaries, for replay to the base
    fisher: tuple[Record, ...] = ()  # held out for the Fisher information, used for nothing else
    development: tuple[Record, ...] = ()  # held out to choose by: early stopping, averaging
    test: tuple[Record, ...] = ()
    test_name: str = "test"
    warnings: tuple[str, ...] = ()
    hashes: dict[str, str] = field(default_factory=dict)  # sha256 of each file

    @property
    def sizes(self) -> dict[str, int]:
        """Training records per source; a pair counts once."""
        return {"papers": len(self.papers), "videos": len(self.videos), "pairs": len(self.pairs)}

    def documents(self, source: str, index: int) -> tuple[Record, ...]:
        """The documents of one draw: one, or both sides of a pair."""
        if source == "pairs":
            pair = self.pairs[index]
            return (pair.paper, pair.video)
        return (getattr(self, source)[index],)


def assemble(data: Data) -> Corpus:
    """Read all files and divide them by group, so that no text is both trained on and judged.

    The division follows from a hash of the group (or of the source text), so it is the same in every run and stays
    the same when records are added; it does not depend on the recipe, so recipes are compared on the same records. Raises ConfigError for every faulty file.
    """
    rows, pairs, given = _read_all(data)
    parts = {source: _divided(records, data) for source, records in rows.items()}
    test = given or [record for part in parts.values() for record in part.test]
    held = [record for source in MODALITIES for record in parts[source].fisher]
    development = [record for part in parts.values() for record in part.development]
    unknown = sorted({record.modality for record in test} - set(COLUMNS))
    if unknown:
        raise ConfigError(
            f"{data.test}: modality {', '.join(unknown)} cannot be judged here; use paper, video or document"
        )
    train, warnings, test_keys, held_keys = {}, [], _keys(test), _keys([*held, *development])
    for source, part in parts.items():
        train[source] = [record for record in part.train if _text_key(record) not in test_keys]
        if dropped := len(part.train) - len(train[source]):
            warnings.append(f"{dropped} {source} are in the test set too and were kept out of training")
    kept = [pair for pair in pairs if not _keys([pair.paper, pair.video]) & (test_keys | held_keys)]
    if dropped := len(pairs) - len(kept):
        warnings.append(f"{dropped} of {len(pairs)} pairs have a side that is held out and were kept out of training")
    for source, records in train.items():
        if rows[source] and not records:
            raise ConfigError(f"{getattr(data, source)}: no record is left to train on after holding out. Add records")
    warnings += _unheard(train, data)
    names = ("papers", "videos", "pairs", "documents", "test")
    return Corpus(
        papers=tuple(train["papers"]),
        videos=tuple(train["videos"]),
        pairs=tuple(kept),
        plain=tuple(train["documents"]),
        fisher=tuple(held),
        development=tuple(record for record in development if _text_key(record) not in test_keys),
        test=tuple(test),
        test_name=data.test.stem if data.test else "heldout",
        warnings=tuple(warnings),
        hashes={name: files.sha256(path) for name in names if (path := getattr(data, name))},
    )


def _unheard(train: dict[str, list[Record]], data: Data) -> list[str]:
    """Instructions of records that the prompt does not pass on."""
    if "{instruction}" in data.prompt:
        return []
    told = {source: sum(bool(record.instruction) for record in records) for source, records in train.items()}
    return [
        f"{count} {source} have an instruction of their own, but data.prompt has no {{instruction}}: the model is not told it"
        for source, count in told.items()
        if count
    ]


def _read_all(data: Data) -> tuple[dict[str, list[Record]], tuple[Pair, ...], list[Record]]:
    """(records per source, pairs, given test records). Raises ConfigError with the mistakes of all files."""
    mistakes: list[str] = []

    def tried(action, default):
        try:
            return action()
        except ConfigError as error:
            mistakes.extend(error.lines)
            return default

    rows = {}
    for source, modality in (*MODALITIES.items(), ("documents", "document")):
        path = getattr(data, source)
        rows[source] = tried(lambda p=path, m=modality: read(p, m, m != "document"), []) if path else []
    pairs = tried(lambda: _pairs(data.pairs), ()) if data.pairs else ()
    given = tried(lambda: read_test(data.test), []) if data.test else []
    if mistakes:
        raise ConfigError(*mistakes)
    return rows, pairs, given


def read_test(path: Path) -> list[Record]:
    """Documents to judge by: each with a summary, but for plain documents (modality document). Raises ConfigError."""
    records = read(path, need_summary=False)
    bare = [r.id for r in records if r.modality != "document" and not r.summary]
    if bare:
        raise ConfigError(
            f"{path}: record {bare[0]} ({len(bare)} in all): summary is missing, and only plain documents go without"
        )
    return records


class Parts(NamedTuple):
    """The records of one file by what they are used for."""

    test: list[Record]
    fisher: list[Record]
    development: list[Record]
    train: list[Record]


def _divided(records: list[Record], data: Data) -> Parts:
    parts = Parts([], [], [], [])
    test_share = 0.0 if data.test else data.test_share
    fisher = 1 - data.fisher_share
    for record in records:
        position = _position(record)
        if position < test_share:
            parts.test.append(record)
        elif position >= fisher:
            parts.fisher.append(record)
        elif position >= fisher - data.development_share:
            parts.development.append(record)
        else:
            parts.train.append(record)
    return parts


def group_of(record: Record) -> str:
    """What must not be divided: the record's group, or else its text."""
    return record.group or _text_key(record)


def _position(record: Record) -> float:
    """A number in [0, 1) that follows from the record's group."""
    key = group_of(record)
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") / 2**64


def _text_key(record: Record) -> str:
    return hashlib.sha256(" ".join(record.source.split()).casefold().encode()).hexdigest()


def _keys(records: list[Record]) -> frozenset[str]:
    return frozenset(map(_text_key, records))


def _pairs(path: Path) -> tuple[Pair, ...]:
    sides: dict[str, dict[str, Record]] = {}
    mistakes = []
    for record in read(path):
        if not record.pair_id or record.modality not in COLUMNS:
            mistakes.append(f"{path}: record {record.id}: a pair needs pair_id and modality paper or video")
            continue
        side = sides.setdefault(record.pair_id.strip(), {})
        if record.modality in side:
            mistakes.append(f"{path}: record {record.id}: pair {record.pair_id} has two {record.modality}s")
        side[record.modality] = record
    for pair_id, side in sides.items():
        if len(side) == 1:
            mistakes.append(f"{path}: pair {pair_id} has only a {next(iter(side))}. Add the other side or remove it")
    if mistakes:
        raise ConfigError(*mistakes[:10], *([f"{path}: and {len(mistakes) - 10} more"] if len(mistakes) > 10 else []))
    return tuple(Pair(side["paper"], side["video"]) for side in sides.values())
