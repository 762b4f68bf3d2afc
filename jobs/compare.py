"""Two or more checkpoints side by side, from what their evaluations stored. Light: no statistics, no model."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from engine import events as ev
from engine.configs import settings_leaves
from engine.corpus import terms
from engine.corpus.split import assemble, read_test
from engine.corpus.terms import Lexicon
from engine.evaluation.table import HEADLINE, METRICS, columns_in_order
from engine.settings import ConfigError, Settings
from jobs.home import Home
from jobs.records import Records
from jobs.scores import Documents, documents
from jobs.submit import load_about_settings, read_about

SAMPLES = 10


class Side(NamedTuple):
    """One checkpoint. name: RUN/PHASE. summary: content of its <test set>.json."""

    name: str
    folder: Path
    about: dict
    summary: dict
    scores: Path


@dataclass(frozen=True)
class Comparison:
    """Checkpoints judged on the same test set; the first is what the others are compared with."""

    test_set: str
    sides: tuple[Side, ...]
    warnings: tuple[str, ...] = ()

    @cached_property
    def documents(self) -> tuple[Documents, ...]:
        """The stored rows of each side, read on first use. Raises ConfigError if a scores file is gone."""
        return tuple(documents(side.scores) for side in self.sides)

    @cached_property
    def settings(self) -> Settings:
        """Of the first side. Raises ConfigError."""
        return load_about_settings(self.sides[0].about, self.sides[0].folder)

    @property
    def names(self) -> list[str]:
        return [side.name for side in self.sides]


class Change(NamedTuple):
    """One document: its scores on each side, and how much the worst of the others lost against the first."""

    column: str
    id: str
    values: tuple[float | None, ...]
    change: float


def find(home: Home, text: Path | str) -> Path:
    """The folder of a checkpoint: as given, its final/, or RUN/PHASE under checkpoints/. Raises ConfigError."""
    given = Path(text).expanduser()
    for folder in (given, given / "final", home.checkpoints / given, home.checkpoints / given / "final"):
        if (folder / "about.json").exists():
            return folder.resolve()
    read_about(given)  # says what is wrong
    return given


def load(home: Home, given: Sequence[Path | str], test_set: str | None = None) -> Comparison:
    """Raises ConfigError unless two or more different checkpoints were judged on the same documents."""
    folders = list(dict.fromkeys(find(home, text) for text in given))
    if len(folders) < 2:
        raise ConfigError("compare: give two or more different checkpoints. `hybridsum.py checkpoints` lists them")
    abouts = [read_about(folder) for folder in folders]
    chosen = test_set or _common(folders)
    sides = []
    for folder, about in zip(folders, abouts, strict=True):
        path = folder / "evaluations" / f"{chosen}.json"
        if not path.exists():
            raise ConfigError(
                f"{folder}: was not judged on {chosen}: hybridsum.py evaluate --checkpoint {folder} --test-set FILE"
            )
        name = f"{about['run']}/{about['phase']}"
        sides.append(Side(name, folder, about, json.loads(path.read_bytes()), path.with_suffix(".jsonl")))
    if len({side.summary["documents"] for side in sides if "documents" in side.summary}) > 1:
        raise ConfigError(
            f"compare: the test sets called {chosen} hold different documents. Judge all on one: hybridsum.py evaluate "
            "--checkpoint DIR --test-set FILE"
        )
    return Comparison(chosen, tuple(sides), tuple(_doubts(sides)))


def _common(folders: Sequence[Path]) -> str:
    """The test set that all were judged on; of several the one judged last."""
    made = [{path.stem: path.stat().st_mtime for path in (f / "evaluations").glob("*.json")} for f in folders]
    shared = set.intersection(*(set(sets) for sets in made))
    if not shared:
        words = "; ".join(f"{f}: {', '.join(sorted(sets)) or 'none'}" for f, sets in zip(folders, made, strict=True))
        raise ConfigError(
            f"compare: no test set that all were judged on ({words}). hybridsum.py evaluate --checkpoint DIR --test-set FILE"
        )
    return max(shared, key=lambda name: made[0][name])


def _doubts(sides: Sequence[Side]) -> list[str]:
    """Why some numbers cannot be compared."""
    encoders = [str((side.summary.get("scored_by") or {}).get("bertscore")) for side in sides]
    if len(set(encoders)) > 1:
        return [f"BERTScore is left out: it was measured with different encoders ({' | '.join(encoders)})"]
    return []


# -- what is shown ------------------------------------------------------------------------------------------------


def overview(found: Comparison) -> dict[str, Any]:
    """The part of `compare --json` that needs neither the documents nor a test."""
    return {
        "test_set": found.test_set,
        "checkpoints": [
            {"name": side.name, "path": str(side.folder), "run": side.about["run"], "phase": side.about["phase"]}
            for side in found.sides
        ],
        "metrics": {f"{c}.{m}": list(values) for (c, m), values in metric_rows(found).items()},
        "settings_changed": settings_changed(found),
        "warnings": list(found.warnings),
    }


def metric_rows(found: Comparison) -> dict[tuple[str, str], tuple[float | None, ...]]:
    """{(column, metric): the value of each side}, headline metrics first; what no side has is left out."""
    means = [side.summary["metrics"] for side in found.sides]
    left_out = ("bertscore",) if found.warnings else ()
    order = sorted(METRICS, key=lambda name: (name not in HEADLINE, list(METRICS).index(name)))
    rows = {}
    for column in columns_in_order({column for side in means for column in side}):
        for metric in order:
            values = tuple(side.get(column, {}).get(metric) for side in means)
            if any(value is not None for value in values) and not metric.startswith(left_out or "\0"):
                rows[column, metric] = values
    return rows


def tested(found: Comparison, wanted: Sequence[str] = ()) -> list[tuple[str, str]]:
    """(column, metric) of the family that is tested: the headline metrics and term recall, or those that are wanted.

    Declared before the numbers are seen, since Holm's correction counts them. Raises ConfigError for unknown ones.
    """
    if unknown := [name for name in wanted if name not in METRICS]:
        raise ConfigError(f"--metric {', '.join(unknown)}: unknown. Use one of {', '.join(METRICS)}")
    names = wanted or (*HEADLINE, "term_recall")
    return [row for row, values in metric_rows(found).items() if row[1] in names and None not in values]


def settings_changed(found: Comparison) -> dict[str, list]:
    """{name: value on each side} of the settings that are not the same everywhere."""
    leaves = [settings_leaves(side.about.get("settings") or {}) for side in found.sides]
    names = sorted({name for side in leaves for name in side})
    told = {name: [side.get(name) for side in leaves] for name in names}
    return {name: values for name, values in told.items() if any(value != values[0] for value in values)}


def ranked(found: Comparison, metric: str) -> list[Change]:
    """Documents that all sides share, those that got worst first (of a likelihood: those that rose most)."""
    rows = []
    better, scale = METRICS[metric].better or 1, METRICS[metric].scale
    for column, name in found.documents[0]:
        each = [side.get((column, name)) for side in found.documents]
        values = [None if row is None else row["scores"].get(metric) for row in each]
        if None not in values:
            shown = tuple(scale * value for value in values)
            rows.append(Change(column, name, shown, min(better * (value - shown[0]) for value in shown[1:])))
    return sorted(rows, key=lambda row: row.change)


def sources(found: Comparison) -> dict[str, str]:
    """{document id: source text}, from the test set's file or the held-out records. Raises ConfigError if it is gone."""
    path = found.sides[0].summary.get("test_file")
    records = read_test(Path(path)) if path else assemble(found.settings.data).test
    return {record.id: record.source for record in records}


def lexicon(found: Comparison) -> Lexicon | None:
    """The terms that the first side was judged by. Raises ConfigError if the file is gone."""
    return terms.load(found.settings.data.terms) if found.settings.data.terms else None


def sample(found: Comparison, row: Change, texts: dict[str, str], words: Lexicon | None) -> dict[str, Any]:
    """One document in full: source, reference, the output of each side, and its terms that each output lost."""
    each = [side[row.column, row.id] for side in found.documents]
    wanted = {span.term for span in words.spans(each[0]["reference"])} if words else set()
    outputs = [document["output"] for document in each]
    lost = [sorted(wanted - {span.term for span in words.spans(text)}) for text in outputs] if words else []
    return {
        "id": row.id,
        "column": row.column,
        "source": texts.get(row.id),
        "reference": each[0]["reference"],
        "outputs": outputs,
        "scores": list(row.values),
        "change": row.change,
        "terms": sorted(wanted),
        "terms_lost": lost,
    }


def samples(found: Comparison, metric: str, count: int = SAMPLES) -> tuple[list[dict], list[str]]:
    """(the documents that got worst, in full; what could not be had). count: how many."""
    warnings, texts, words = [], {}, None
    try:
        texts = sources(found)
    except ConfigError as error:
        warnings.append(f"sources are missing: {error.lines[0]}")
    try:
        words = lexicon(found)
    except ConfigError as error:
        warnings.append(f"terms are missing: {error.lines[0]}")
    return [sample(found, row, texts, words) for row in ranked(found, metric)[:count]], warnings


def curves(home: Home, records: Records, found: Comparison) -> dict[str, tuple[list[int], list[float | None]]]:
    """{name: (steps, minimised sum)} of each side's phase, from the events of its newest job."""
    drawn = {}
    for side in found.sides:
        kind = (side.about["run"], side.about["phase"])
        jobs = [job for job in records.jobs().values() if job.kind == "phase" and (job.run, job.phase) == kind]
        steps: dict[int, float | None] = {}
        for stamped in ev.read(home.events(jobs[-1].id)) if jobs else ():
            if isinstance(stamped.event, ev.Step):
                steps[stamped.event.step] = stamped.event.total
        if steps:
            drawn[side.name] = (list(steps), list(steps.values()))
    return drawn
