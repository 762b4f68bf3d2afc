"""From the files of section `data` to what is trained on, what the Fisher sees, and what is judged. Light."""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import NamedTuple

from engine import files
from engine.corpus.records import Record, read
from engine.corpus.stored import Stored, stored, text_key
from engine.lazy import Lazy
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


class Pairs(Lazy[Pair]):
    """Pairs whose sides stay in their files."""

    def __init__(self, papers: Stored, videos: Stored):
        self.sides = (papers, videos)
        super().__init__(len(papers), lambda k: Pair(papers[k], videos[k]))

    def chosen(self, wanted: Iterable[int]) -> "Pairs":
        papers, videos = self.sides
        places = list(wanted)
        return Pairs(papers.chosen(places), videos.chosen(places))


FILES = ("papers", "videos", "pairs", "documents")  # of section data, with records to train on
NO_PAIRS = Pairs(Stored(), Stored())


@dataclass(frozen=True)
class Corpus:
    """Records are read from their files when they are asked for; only those of a given test set are in memory."""

    papers: Stored = field(default_factory=Stored)
    videos: Stored = field(default_factory=Stored)
    pairs: Pairs = field(default_factory=lambda: NO_PAIRS)
    plain: Stored = field(default_factory=Stored)  # documents without summaries, for replay to the base
    fisher: Stored = field(default_factory=Stored)  # held out for the Fisher information, used for nothing else
    development: Stored = field(default_factory=Stored)  # held out to choose by: early stopping, averaging
    test: Sequence[Record] = ()
    test_name: str = "test"
    warnings: tuple[str, ...] = ()
    hashes: dict[str, str] = field(default_factory=dict)  # sha256 of each file

    @property
    def sizes(self) -> dict[str, int]:
        """Training records per source; a pair counts once."""
        return {"papers": len(self.papers), "videos": len(self.videos), "pairs": len(self.pairs)}

    def documents(self, source: str, index: int) -> tuple[Record, ...]:
        """The documents of one draw: one, or both sides of a pair."""
        return tuple(side[index] for side in self.sides(source))

    def sides(self, source: str) -> tuple[Stored, ...]:
        """What the draws of a source take one document each from."""
        return self.pairs.sides if source == "pairs" else (getattr(self, source),)


def assemble(data: Data, folder: Path | None = None) -> Corpus:
    """Read all files and divide them by group, so that no text is both trained on and judged.

    The division follows from a hash of the group (or of the source text), so it is the same in every run and stays
    the same when records are added; it does not depend on the recipe, so recipes are compared on the same records.
    folder: where what is known of a file is kept, so that it need not be read again (but for data.token_cache_gib=0).
    Raises ConfigError for every faulty file.
    """
    rows, pairs, given = _read_all(data, folder if data.token_cache_gib else None)
    parts = {source: _divided(records, data) for source, records in rows.items()}
    test = given or _joined(part.test for part in parts.values())
    held = _joined(parts[source].fisher for source in MODALITIES)
    development = _joined(part.development for part in parts.values())
    unknown = sorted({record.modality for record in given} - set(COLUMNS))
    if unknown:
        raise ConfigError(
            f"{data.test}: modality {', '.join(unknown)} cannot be judged here; use paper, video or document"
        )
    test_keys = frozenset(map(text_key, given) if given else test.keys())
    train, warnings = {}, _remarks([*rows.values(), *pairs.sides])
    for source, part in parts.items():
        train[source] = _without(part.train, test_keys)
        if dropped := len(part.train) - len(train[source]):
            warnings.append(f"{dropped} {source} are in the test set too and were kept out of training")
    kept = _apart(pairs, test_keys.union(held.keys(), development.keys())) if len(pairs) else pairs
    if dropped := len(pairs) - len(kept):
        warnings.append(f"{dropped} of {len(pairs)} pairs have a side that is held out and were kept out of training")
    for source, records in train.items():
        if rows[source] and not records:
            raise ConfigError(f"{getattr(data, source)}: no record is left to train on after holding out. Add records")
    warnings += _unheard(train, data)
    read_from = rows | {"pairs": pairs.sides[0]}
    hashes = {name: read_from[name].parts[0][0].sha256 for name in FILES if read_from.get(name)}
    return Corpus(
        papers=train["papers"],
        videos=train["videos"],
        pairs=kept,
        plain=train["documents"],
        fisher=held,
        development=_without(development, test_keys),
        test=test,
        test_name=data.test.stem if data.test else "heldout",
        warnings=tuple(warnings),
        hashes=hashes | ({"test": files.sha256(data.test)} if data.test else {}),
    )


def _joined(parts: Iterable[Stored]) -> Stored:
    return sum(parts, Stored())


def _without(records: Stored, keys: Collection[bytes]) -> Stored:
    """The records whose text is not among `keys`."""
    if not keys:
        return records
    return records.chosen(k for k, key in enumerate(records.keys()) if key not in keys)


def _apart(pairs: Pairs, keys: Collection[bytes]) -> Pairs:
    """The pairs with no side among `keys`."""
    sides = zip(*(side.keys() for side in pairs.sides), strict=True)
    return pairs.chosen(k for k, both in enumerate(sides) if not any(key in keys for key in both))


def _remarks(found: Iterable[Stored]) -> list[str]:
    return list(dict.fromkeys(index.remark for part in found for index, _ in part.parts if index.remark))


def _unheard(train: dict[str, Stored], data: Data) -> list[str]:
    """Instructions of records that the prompt does not pass on."""
    if "{instruction}" in data.prompt:
        return []
    told = {source: sum(records.column("told")) for source, records in train.items()}
    return [
        f"{count} {source} have an instruction of their own, but data.prompt has no {{instruction}}: the model is not told it"
        for source, count in told.items()
        if count
    ]


def _read_all(data: Data, folder: Path | None) -> tuple[dict[str, Stored], Pairs, tuple[Record, ...]]:
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
        read_one = partial(stored, path, modality, modality != "document", folder)
        rows[source] = tried(read_one, Stored()) if path else Stored()
    pairs = tried(lambda: _pairs(data.pairs, folder), NO_PAIRS) if data.pairs else NO_PAIRS
    given = tried(lambda: tuple(read_test(data.test)), ()) if data.test else ()
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

    test: Stored
    fisher: Stored
    development: Stored
    train: Stored


def _divided(records: Stored, data: Data) -> Parts:
    parts = Parts([], [], [], [])
    test_share = 0.0 if data.test else data.test_share
    fisher = 1 - data.fisher_share
    for k, position in enumerate(records.column("position")):
        if position < test_share:
            parts.test.append(k)
        elif position >= fisher:
            parts.fisher.append(k)
        elif position >= fisher - data.development_share:
            parts.development.append(k)
        else:
            parts.train.append(k)
    return Parts(*map(records.chosen, parts))


def _pairs(path: Path, folder: Path | None) -> Pairs:
    records = stored(path, folder=folder)
    sides: dict[str, dict[str, int]] = {}
    mistakes = []
    for k, record in enumerate(records):
        if not record.pair_id or record.modality not in MODALITIES.values():
            mistakes.append(f"{path}: record {record.id}: a pair needs pair_id and modality paper or video")
            continue
        side = sides.setdefault(record.pair_id.strip(), {})
        if record.modality in side:
            mistakes.append(f"{path}: record {record.id}: pair {record.pair_id} has two {record.modality}s")
        side[record.modality] = k
    for pair_id, side in sides.items():
        if len(side) == 1:
            mistakes.append(f"{path}: pair {pair_id} has only a {next(iter(side))}. Add the other side or remove it")
    if mistakes:
        raise ConfigError(*mistakes[:10], *([f"{path}: and {len(mistakes) - 10} more"] if len(mistakes) > 10 else []))
    return Pairs(*(records.chosen(side[modality] for side in sides.values()) for modality in MODALITIES.values()))
