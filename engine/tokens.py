"""Records in tokens, encoded once: kept on disk under a name that follows from everything they depend on, and mapped."""

import hashlib
import sys
import tempfile
import time
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import tokenizers
import transformers

from engine import columns, files
from engine.batches import Encoded, Encoder
from engine.corpus import instructions
from engine.corpus.records import Record
from engine.corpus.stored import Stored
from engine.events import Encoding, Stage, Warned
from engine.lazy import Lazy
from engine.mixture import integer
from engine.truncation import GAP
from engine.work import Cancelled, Work

VERSION = 1  # counts up when the same records would get other tokens, or the columns another meaning
# Settings of section data that tokens do not depend on, but for which records they are of.
ELSEWHERE = frozenset({
    "papers", "videos", "pairs", "documents", "terms", "test", "test_share", "fisher_share", "development_share", "augment",
    "token_cache_gib",
})  # fmt: skip
CHUNK = 1000  # records in tokens at a time
REFUSED = -1  # stands for the prompt of a record that is no row
SAID_EVERY = 1.0  # seconds between two reports of progress
GIB = 2**30


class Tokens(Lazy[Encoded | None]):
    """What `Encoder` makes of some records, row by row: None where a summary is too long.

    columns: start (q, one more than rows) of each row in ids (i), prompt and cut (i), and the same for its term tokens.
    """

    def __init__(self, found: columns.Columns, members: Sequence[int] | None = None):
        self.columns = found
        self.members = range(len(found["prompt"])) if members is None else members
        super().__init__(len(self.members), self._row)

    def _row(self, k: int) -> Encoded | None:
        found, row = self.columns, self.members[k]
        if found["prompt"][row] == REFUSED:
            return None
        ids = array("i", found["ids"][found["start"][row] : found["start"][row + 1]].tobytes())
        terms = tuple(found["terms"][found["terms_start"][row] : found["terms_start"][row + 1]])
        return Encoded(ids, found["prompt"][row], found["cut"][row], terms)

    def chosen(self, places: Sequence[int]) -> "Tokens":
        return Tokens(self.columns, array("q", (self.members[k] for k in places)))

    def accepted(self, k: int) -> bool:
        """Whether a record is a row."""
        return self.columns["prompt"][self.members[k]] != REFUSED

    def counts(self) -> "Counts":
        """Of the records that are rows."""
        prompt, cut, start, terms = (self.columns[name] for name in ("prompt", "cut", "start", "terms_start"))
        rows = [row for row in self.members if prompt[row] != REFUSED]
        return Counts(
            sum(start[row + 1] - start[row] - prompt[row] for row in rows),
            sum(terms[row + 1] - terms[row] for row in rows),
            sum(cut[row] > 0 for row in rows),
        )


def usable(sides: Sequence[Tokens]) -> array:
    """The places at which every side has a row, ascending."""
    return array("q", (k for k in range(len(sides[0])) if all(side.accepted(k) for side in sides)))


class Counts(NamedTuple):
    summary_tokens: int
    term_tokens: int
    cut: int  # sources of which something was left out


@dataclass(frozen=True)
class Source:
    """Where rows come from: an encoder, and what of it they depend on."""

    work: Work
    encoder: Encoder
    key: str  # of tokenizer, settings and lexicon

    def tokens(self, records: Stored, what: str, plain: bool = False) -> Tokens:
        """The rows of some records, from the folder of what is kept or made now. what: they are, for the report of progress.

        plain: they are read, not summarised. Raises Cancelled, and ConfigError as the encoder does.
        """
        place = folder(self.work) if len(records) else None
        name = f"tokens-{integer(self.key, plain, records.identity()):016x}"
        found, remark = columns.kept(place, name, partial(_columns, self, records, what, plain))
        if remark:
            self.work.emit(Warned(remark))
        if place:
            self._prune(place, name)
        return Tokens(found)

    def _prune(self, place: Path, name: str) -> None:
        most = self.work.settings.data.token_cache_gib
        if any(path.name.startswith(name) for path in columns.prune(place, most * GIB)):
            told = f"more than data.token_cache_gib {most:g}, so the next job has to make them again"
            self.work.emit(Warned(f"these records in tokens alone take {told}"))


def source(work: Work, encoder: Encoder) -> Source:
    return Source(work, encoder, fingerprint(encoder))


def folder(work: Work) -> Path | None:
    """Where this job keeps what follows from its data, if anywhere."""
    return work.cache if work.settings.data.token_cache_gib else None


def fingerprint(encoder: Encoder) -> str:
    """The same tokenizer, settings and lexicon give the same tokens."""
    data = encoder.data.model_dump(mode="json", exclude=set(ELSEWHERE))
    asked = (GAP, instructions.WORDS, instructions.REQUESTS)
    versions = (VERSION, tokenizers.__version__, transformers.__version__, sys.byteorder)
    lexicon = encoder.lexicon.terms if encoder.lexicon else None
    return f"{integer(versions, identity(encoder.tokenizer), data, asked, lexicon):016x}"


def identity(tokenizer) -> str:
    """What tells a tokenizer from any other: the files it would be saved as, whatever kind it is of."""
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        saved = sorted(path for path in Path(folder).rglob("*") if path.is_file())
        told = [f"{path.relative_to(folder)} {files.sha256(path)}" for path in saved]
    return hashlib.sha256("\n".join(told).encode()).hexdigest()


def _columns(made: Source, records: Stored, what: str, plain: bool) -> Iterator[columns.Column]:
    starts, prompts, cuts, terms, terms_starts = (array(code) for code in "qiiiq")

    def ids() -> Iterator[array]:
        total = 0
        for row in _encoded(made, records, what, plain):
            starts.append(total)
            terms_starts.append(len(terms))
            prompts.append(row.prompt if row else REFUSED)
            cuts.append(row.cut if row else 0)
            if row:
                terms.extend(row.terms)
                total += len(row.ids)
                yield array("i", row.ids)
        starts.append(total)
        terms_starts.append(len(terms))

    yield "ids", "i", ids()
    yield "start", "q", [starts]
    yield "terms_start", "q", [terms_starts]
    for name, column in (("prompt", prompts), ("cut", cuts), ("terms", terms)):
        yield name, "i", [column]


def _encoded(made: Source, records: Stored, what: str, plain: bool) -> Iterator[Encoded | None]:
    """The rows of records, some at a time, with the progress told. Raises Cancelled between two times."""
    if not len(records):
        return
    work, encode = made.work, made.encoder.plain if plain else made.encoder.encode
    work.emit(Stage("encoding"))
    done, said = 0, time.monotonic()
    for chunk in _chunks(records):
        if done and work.cancelled():
            raise Cancelled
        yield from encode(chunk)
        done += len(chunk)
        if done == len(records) or time.monotonic() - said >= SAID_EVERY:
            said = time.monotonic()
            work.emit(Encoding(done, len(records), what))
    work.emit(Stage("loading"))  # as before: what runs out of memory now is made smaller as when loading


def _chunks(records: Iterable[Record]) -> Iterator[list[Record]]:
    waiting = iter(records)
    while chunk := list(islice(waiting, CHUNK)):
        yield chunk
