"""What training will see of the data, before it runs: `python -m engine.preflight SPEC`, the facts in the spec's `result`."""

import json
import sys
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from engine import files
from engine.base import train_tokenizer
from engine.batches import Encoder
from engine.corpus import leaks
from engine.corpus.records import Record
from engine.corpus.split import Corpus, assemble
from engine.mixture import generator
from engine.settings import ConfigError, Settings
from engine.truncation import PLACES

SAMPLE = 2000  # records of a source that are counted in tokens
SAMPLES = 3
TRIED = 50  # of a source, until one is found whose summary is not too long
BINS = 10
CHUNK = 64
LOST = 1000  # characters at either end of what is left out that are shown


def main(spec: dict) -> None:
    """spec: {settings, model (a folder or a name; empty: not built yet), result}. Raises ConfigError."""
    settings = Settings.model_validate(spec["settings"])
    corpus = assemble(settings.data)
    encoder = Encoder(_tokenizer(settings, corpus, spec["model"]), settings.data)
    sources = {
        source: [record for index in range(count) for record in corpus.documents(source, index)]
        for source, count in corpus.sizes.items()
        if count
    }
    counted = {source: _counted(encoder, records, settings.train.seed, source) for source, records in sources.items()}
    divided = {
        "training": [*(r for rows in sources.values() for r in rows), *corpus.plain],
        "fisher": corpus.fisher,
        "development": corpus.development,
        "test": corpus.test,
    }
    found = leaks.between(divided)
    files.replace_json(
        Path(spec["result"]), _facts(settings, corpus, counted, found, _samples(encoder, sources, settings))
    )


def _tokenizer(settings: Settings, corpus: Corpus, model: str):
    """The model's own; for a base that is not built yet the one it will get."""
    if model:
        try:
            return AutoTokenizer.from_pretrained(model, revision=settings.model.revision)
        except (OSError, ValueError) as error:
            raise ConfigError(
                f"model.name_or_path: {model}: no tokenizer: {str(error).splitlines()[0][:120]}"
            ) from None
    if settings.model.build is None:
        raise ConfigError("model.name_or_path: missing. Give a Hugging Face name, a folder, or a model.build section")
    return train_tokenizer(corpus, settings.model.build)


def _counted(encoder: Encoder, records: Sequence[Record], seed: int, source: str) -> dict[str, Any]:
    """Tokens of the records of a source, or of an even sample of them; lengths are those before anything is left out.

    The summaries that are too long are all found, not those of the sample only.
    """
    too_long = _too_long(encoder, records)
    chosen = sorted(generator(seed, "preflight", source).sample(range(len(records)), min(SAMPLE, len(records))))
    rows = [row for part in _chunks([records[number] for number in chosen]) for row in encoder.encode(part) if row]
    lengths, cut = [len(row.ids) + row.cut for row in rows], [row.cut for row in rows if row.cut]
    print(f"{source}: {len(chosen):,} of {len(records):,} records counted", flush=True)
    return {
        "records": len(records), "counted": len(chosen), "truncated": len(cut), "cut_tokens": sum(cut),
        "summary_tokens": sum(row.summary_tokens for row in rows), "tokens": sum(len(row.ids) for row in rows),
        "summaries_too_long": too_long, "longest": max(lengths, default=0), "histogram": histogram(lengths),
    }  # fmt: skip


def _too_long(encoder: Encoder, records: Sequence[Record]) -> list[str]:
    """Ids of the records whose summary, with the end-of-text token, is longer than data.max_summary_length."""
    limit = encoder.data.max_summary_length
    # a token holds a byte at least, but for one that some tokenizers put in front
    doubtful = [record for record in records if len((record.summary or "").encode()) + 2 > limit]
    return [
        record.id
        for part in _chunks(doubtful)
        for record, length in zip(part, encoder.summary_lengths(part), strict=True)
        if length > limit
    ]


def _chunks(records: Sequence[Record]) -> Iterator[Sequence[Record]]:
    return (records[start : start + CHUNK] for start in range(0, len(records), CHUNK))


def histogram(lengths: Sequence[int]) -> dict[str, list[int]]:
    """{edges: upper ends, counts} in ten bins of equal width; the last edge is the longest."""
    longest = max(lengths, default=0)
    edges = sorted({-(-longest * n // BINS) for n in range(1, BINS + 1)} - {0})
    counts = [0] * len(edges)
    for length in lengths:
        counts[next(n for n, edge in enumerate(edges) if length <= edge)] += 1
    return {"edges": edges, "counts": counts}


def _samples(encoder: Encoder, sources: dict[str, list[Record]], settings: Settings) -> list[dict[str, str]]:
    """Three documents as the model reads them: what is masked (no loss on it), what is learnt, what is left out."""
    chance = generator(settings.train.seed, "preflight", "samples")
    drawn = {source: chance.sample(records, min(TRIED, len(records))) for source, records in sources.items()}
    turns = ((source, rows[n]) for n in range(TRIED) for source, rows in drawn.items() if n < len(rows))
    shown = (_shown(encoder, *turn) for turn in turns)
    return list(islice(filter(None, shown), SAMPLES))


def _shown(encoder: Encoder, source: str, record: Record) -> dict[str, Any] | None:
    (row,) = encoder.encode([record])
    if row is None:
        return None
    masked, learnt = (encoder.tokenizer.decode(ids) for ids in (row.ids[: row.prompt], row.ids[row.prompt :]))
    after, lost = encoder.left_out(record)
    lost = lost if len(lost) <= 2 * LOST else f"{lost[:LOST]} … {lost[-LOST:]}"
    shown = {"source": source, "id": record.id, "masked": masked, "learnt": learnt}
    return shown | {"cut": row.cut, "cut_after": after, "cut_text": lost}


def _facts(settings: Settings, corpus: Corpus, counted: dict, found: list, samples: list) -> dict[str, Any]:
    totals = {name: sum(part[name] for part in counted.values()) for name in ("summary_tokens", "tokens")}
    share = totals["summary_tokens"] / totals["tokens"] if totals["tokens"] else None
    return {
        "records": {source: part["records"] for source, part in counted.items()},
        "truncated": {source: round(part["truncated"] / part["counted"] * part["records"]) for source, part in counted.items()},
        "label_share": share, "max_length": settings.data.max_length, "truncate": settings.data.truncate, "sources": counted, "leaks": found,
        "samples": samples, "warnings": [*corpus.warnings, *_warnings(settings, counted, found, share)],
    }  # fmt: skip


def _warnings(settings: Settings, counted: dict, found: list, share: float | None) -> list[str]:
    lines = []
    for source, part in counted.items():
        if part["truncated"]:
            mean = part["cut_tokens"] / part["truncated"]
            lines.append(
                f"{source}: {part['truncated'] / part['counted']:.1%} are longer than data.max_length {settings.data.max_length}: "
                f"on average {mean:,.0f} tokens are left out, from the {PLACES[settings.data.truncate]} of the source "
                f"(data.truncate {settings.data.truncate}); summaries stay whole"
            )
        if part["summaries_too_long"]:
            lines.append(
                f"{source}: {len(part['summaries_too_long'])} summaries are longer than data.max_summary_length "
                f"{settings.data.max_summary_length} ({', '.join(part['summaries_too_long'][:3])}): training leaves these records out, it never cuts a summary"
            )
    for leak in found:
        one, other = leak["parts"]
        lines.append(
            f"{_records(leak['count'])} of {other} nearly repeat{'s' if leak['count'] == 1 else ''} one of {one} ({' and '.join(leak['examples'][0])}): give both one group"
        )
    if share is not None and share < 0.02:
        lines.append(f"only {share:.1%} of the tokens are learnt from: sources are very long for their summaries")
    return lines


def _records(count: int) -> str:
    return "1 record" if count == 1 else f"{count:,} records"


if __name__ == "__main__":
    try:
        main(json.loads(sys.argv[1]))
    except ConfigError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
