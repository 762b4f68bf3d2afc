"""Scores of outputs that some other program wrote; a process of its own, because BERTScore needs torch.

    python -m engine.evaluation.given PREDICTIONS REFERENCES [OUT.jsonl] [section.name=value ...]

prints one JSON value: {metrics: {column: means}, documents, scored_by, out}; on stderr how far it is, and warnings.
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from engine import files
from engine.configs import load
from engine.corpus import terms
from engine.corpus.records import HDF5_SUFFIXES, Record
from engine.corpus.split import read_test
from engine.evaluation import bertscore, score
from engine.events import Emit, Event, Scored, Stage
from engine.settings import ConfigError, Settings

TEXT_KEYS = ("output", "prediction", "generated", "summary")  # the first of these that a line has is its text


def run(
    predictions: Path, references: Path, out: Path | None, settings: Settings, emit: Emit = lambda event: None
) -> dict:
    """Score predictions against references as an evaluation would; out: also write the rows, a line per document.

    Raises ConfigError if they do not belong together.
    """
    records = _references(references)
    outputs = _predictions(predictions, records)
    judge = bertscore.judge(settings.evaluate.bertscore_model)
    lexicon = terms.load(settings.data.terms) if settings.data.terms else None
    written = [
        {"id": r.id, "modality": r.modality, "reference": r.summary, "output": text, "scores": {}}
        for r, text in zip(records, outputs, strict=True)
    ]
    rows, scored_by = score.rows(written, [record.source or None for record in records], judge, lexicon, emit=emit)
    for remark in scored_by.pop("remarks"):
        print(f"warning: {remark}", file=sys.stderr)
    if out:
        files.replace(out, b"".join(json.dumps(row, ensure_ascii=False).encode() + b"\n" for row in rows))
    return {
        "metrics": score.columns(rows),
        "documents": len(rows),
        "scored_by": scored_by,
        "out": str(out) if out else None,
    }


def _references(path: Path) -> list[Record]:
    """Records with summaries; or of a .txt file a reference a line, without sources."""
    if path.suffix.lower() != ".txt":
        return [record for record in read_test(path) if record.summary]  # plain documents have nothing to be predicted
    lines = _lines(path)
    if blank := [str(number) for number, line in enumerate(lines, 1) if not line.strip()]:
        raise ConfigError(f"{path}: line {', '.join(blank[:5])} is empty. A reference needs words")
    return [Record(str(number), "text", "", line) for number, line in enumerate(lines, 1)]


def _predictions(path: Path, records: Sequence[Record]) -> list[str]:
    """The text for each record: of a .txt file line by line, else by id."""
    if path.suffix.lower() == ".txt":
        lines = _lines(path)
        if len(lines) != len(records):
            raise ConfigError(
                f"{path}: {len(lines)} lines for {len(records)} references. Give one line for each, in order"
            )
        return lines
    if path.suffix.lower() in HDF5_SUFFIXES:
        raise ConfigError(f"{path}: predictions are JSON lines with id and {TEXT_KEYS[0]}, or a .txt file, a line each")
    found = _by_id(path)
    missing = [record.id for record in records if record.id not in found]
    unknown = sorted(set(found) - {record.id for record in records})
    for names, words in ((missing, "no prediction for"), (unknown, "no reference for")):
        if names:
            more = f" and {len(names) - 5} more" if len(names) > 5 else ""
            raise ConfigError(f"{path}: {words} id {', '.join(names[:5])}{more}. Ids must be those of the references")
    return [found[record.id] for record in records]


def _by_id(path: Path) -> dict[str, str]:
    found, mistakes = {}, []
    for number, line in enumerate(_lines(path), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            name, text = row["id"], next(row[key] for key in TEXT_KEYS if isinstance(row.get(key), str))
        except (ValueError, KeyError, TypeError, AttributeError, StopIteration):
            mistakes.append(f"{path}: line {number}: not an object with id and one of {', '.join(TEXT_KEYS)}")
            continue
        if name in found:
            mistakes.append(f"{path}: line {number}: id {name!r} stands twice")
        found[name] = text
    if mistakes:
        raise ConfigError(*mistakes[:10], *([f"{path}: and {len(mistakes) - 10} more"] if len(mistakes) > 10 else []))
    return found


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8-sig").rstrip("\n").split("\n")
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file. Paths are relative to the folder you are in ({Path.cwd()})") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read as UTF-8 text ({error})") from None


def progress() -> Emit:
    """Tells on stderr how many documents each stage has done, as the watcher of a job does."""
    stage = "scoring"

    def tell(event: Event) -> None:
        nonlocal stage
        if isinstance(event, Stage):
            stage = event.name
        elif isinstance(event, Scored):
            print(f"progress: {stage} {event.done} of {event.total} documents", file=sys.stderr, flush=True)

    return tell


def main(arguments: Sequence[str]) -> int:
    predictions, references, out, *overrides = arguments
    try:
        found = run(Path(predictions), Path(references), Path(out) if out else None, load(None, overrides), progress())
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 2
    print(json.dumps(found, allow_nan=False))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
