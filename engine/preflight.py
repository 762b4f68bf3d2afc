"""What training will see of the data, before it runs: `python -m engine.preflight SPEC`, the facts in the spec's `result`."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from engine import files
from engine.base import train_tokenizer
from engine.batches import Encoded, Encoder
from engine.corpus import leaks
from engine.corpus.records import Record
from engine.corpus.split import Corpus, assemble
from engine.mixture import generator
from engine.settings import ConfigError, Settings

SAMPLE = 2000  # records of a source that are counted in tokens
SAMPLES = 3
BINS = 10
CHUNK = 64


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
    divided = {"training": [r for rows in sources.values() for r in rows], "fisher": corpus.fisher, "test": corpus.test}
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
    """Tokens of the records of a source, or of an even sample of them; lengths are those before anything is cut."""
    chosen = sorted(generator(seed, "preflight", source).sample(range(len(records)), min(SAMPLE, len(records))))
    lengths, cut, summary, kept, too_long, empty = [], [], 0, 0, [], []
    for start in range(0, len(chosen), CHUNK):
        rows = [records[number] for number in chosen[start : start + CHUNK]]
        for record, row in zip(rows, encoder.encode(rows), strict=True):
            if row is None:
                too_long.append(record.id)
                continue
            lengths.append(len(row.ids) + row.cut)
            summary, kept = summary + row.summary_tokens, kept + len(row.ids)
            if row.cut:
                cut.append(row.cut)
            if record.summary is None:
                empty.append(record.id)
    print(f"{source}: {len(chosen):,} of {len(records):,} records counted", flush=True)
    return {
        "records": len(records), "counted": len(chosen), "truncated": len(cut), "cut_tokens": sum(cut),
        "summary_tokens": summary, "tokens": kept, "summaries_too_long": too_long, "longest": max(lengths, default=0),
        "without_summary": empty, "histogram": histogram(lengths),
    }  # fmt: skip


def histogram(lengths: Sequence[int]) -> dict[str, list[int]]:
    """{edges: upper ends, counts} in ten bins of equal width; the last edge is the longest."""
    longest = max(lengths, default=0)
    edges = sorted({-(-longest * n // BINS) for n in range(1, BINS + 1)} - {0})
    counts = [0] * len(edges)
    for length in lengths:
        counts[next(n for n, edge in enumerate(edges) if length <= edge)] += 1
    return {"edges": edges, "counts": counts}


def _samples(encoder: Encoder, sources: dict[str, list[Record]], settings: Settings) -> list[dict[str, str]]:
    """Three documents as the model reads them: what is masked (no loss on it), and what is learnt."""
    chance = generator(settings.train.seed, "preflight", "samples")
    chosen = [(source, chance.choice(records)) for source, records in sources.items()][:SAMPLES]
    everything = [(source, record) for source, records in sources.items() for record in records]
    chosen += [chance.choice(everything) for _ in range(SAMPLES - len(chosen))] if everything else []
    rows = encoder.encode([record for _, record in chosen])
    return [_shown(encoder, source, record, row) for (source, record), row in zip(chosen, rows, strict=True) if row]


def _shown(encoder: Encoder, source: str, record: Record, row: Encoded) -> dict[str, str]:
    masked, learnt = (encoder.tokenizer.decode(ids) for ids in (row.ids[: row.prompt], row.ids[row.prompt :]))
    return {"source": source, "id": record.id, "masked": masked, "learnt": learnt, "cut": row.cut}


def _facts(settings: Settings, corpus: Corpus, counted: dict, found: list, samples: list) -> dict[str, Any]:
    totals = {name: sum(part[name] for part in counted.values()) for name in ("summary_tokens", "tokens")}
    share = totals["summary_tokens"] / totals["tokens"] if totals["tokens"] else None
    return {
        "records": {source: part["records"] for source, part in counted.items()},
        "truncated": {source: round(part["truncated"] / part["counted"] * part["records"]) for source, part in counted.items()},
        "label_share": share, "max_length": settings.data.max_length, "sources": counted, "leaks": found,
        "samples": samples, "warnings": [*corpus.warnings, *_warnings(settings, counted, found, share)],
    }  # fmt: skip


def _warnings(settings: Settings, counted: dict, found: list, share: float | None) -> list[str]:
    lines = []
    for source, part in counted.items():
        if part["truncated"]:
            mean = part["cut_tokens"] / part["truncated"]
            lines.append(
                f"{source}: {part['truncated'] / part['counted']:.1%} are longer than data.max_length {settings.data.max_length}: "
                f"{mean:,.0f} tokens of the source are cut on average, never of the summary"
            )
        if part["summaries_too_long"]:
            lines.append(
                f"{source}: {len(part['summaries_too_long'])} summaries are longer than data.max_summary_length "
                f"{settings.data.max_summary_length} ({', '.join(part['summaries_too_long'][:3])}): training refuses or skips them, it never cuts one"
            )
        if part["without_summary"]:
            lines.append(
                f"{source}: {len(part['without_summary'])} records have no summary ({', '.join(part['without_summary'][:3])})"
            )
    for leak in found:
        one, other = leak["parts"]
        lines.append(
            f"{leak['count']} records of {other} nearly repeat one of {one} ({' and '.join(leak['examples'][0])}): give both one group"
        )
    if share is not None and share < 0.02:
        lines.append(f"only {share:.1%} of the tokens are learnt from: sources are very long for their summaries")
    return lines


if __name__ == "__main__":
    try:
        main(json.loads(sys.argv[1]))
    except ConfigError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
