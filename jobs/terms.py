"""The verb `terms`: what a lexicon finds in data sets, and what it might take in."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from engine import files
from engine.corpus import lexicon, terms
from engine.corpus.records import read
from jobs.home import PROJECT

DEFAULT = PROJECT / "data" / "medical_terms.txt"
SHOWN = 15


def report(
    inputs: list[Path], listed: Path, general: list[Path], out: Path | None, least: int, most: int
) -> dict[str, Any]:
    """Coverage, usage per file and candidates; writes `out`, where candidates stand as comments. Raises ConfigError."""
    terms.load(listed)  # its complaints name the file
    lines = listed.read_text(encoding="utf-8-sig").splitlines()
    given = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
    kept, variants = lexicon.merged(given)
    chosen = terms.Lexicon(kept)
    records = {path: read(path, need_summary=False) for path in inputs}
    texts = [text for rows in records.values() for record in rows for text in (record.source, record.summary) if text]
    elsewhere = [record.source for path in general for record in read(path, need_summary=False)]
    before, after = lexicon.coverage(given, chosen, texts)
    candidates = lexicon.mined(texts, elsewhere, chosen, least, most)
    if out:
        files.replace(out, _file(kept, candidates).encode())
    return {
        "lexicon": str(listed), "given": len(given), "terms": len(kept), "variants": variants,
        "coverage": {"before": before, "after": after, "share": after / before if before else None},
        "files": {str(path): _of_file(chosen, rows) for path, rows in records.items()},
        "candidates": [asdict(candidate) for candidate in candidates], "general": bool(general), "out": str(out or ""),
    }  # fmt: skip


def _of_file(chosen: terms.Lexicon, rows: list) -> dict[str, Any]:
    found = lexicon.usage(chosen, rows)
    summaries = [record.summary for record in rows if record.summary]
    holding = sum(any(True for _ in chosen.spans(summary)) for summary in summaries)
    return {
        "records": len(rows),
        "summaries": len(summaries),
        "holding": holding,
        "terms": [asdict(row) for row in found],
    }


def _file(kept: tuple[str, ...], candidates: list[lexicon.Candidate]) -> str:
    proposals = [
        f"# {c.term}    ({c.count} times, ratio {c.against if c.against is not None else c.together:.0f})"
        for c in candidates
    ]
    head = "# Terms, one a line. Lines below that begin with # are proposals: strike the # and what stands in brackets."
    return "\n".join([head, *kept, *proposals]) + "\n"


def text(value: dict[str, Any]) -> str:
    """The report for a person."""
    share = value["coverage"]["share"]
    lines = [
        f"{value['lexicon']}: {value['given']} lines, {value['terms']} terms, {len(value['variants'])} variants put together",
        f"occurrences: {value['coverage']['before']:,} before, {value['coverage']['after']:,} after"
        + (f" ({share:.1%})" if share is not None else ""),
    ]
    for name, found in value["files"].items():
        lines.append(
            f"{name}: {found['holding']:,} of {found['summaries']:,} summaries hold a term; {len(found['terms'])} terms occur"
        )
        lines += [
            f"  {t['in_summaries']:>6,} in {t['summaries']:>6,} summaries {t['in_sources']:>8,} in sources  {t['term']}"
            for t in found["terms"][:SHOWN]
        ]
    against = (
        "against the general text"
        if value["general"]
        else "by how firmly the words stand together; --general FILE compares"
    )
    lines.append(f"{len(value['candidates'])} candidates, {against}")
    lines += [
        f"  {c['count']:>6,} times  {c['against'] if c['against'] is not None else c['together']:>8.0f}  {c['term']}"
        for c in value["candidates"][:SHOWN]
    ]
    return "\n".join([*lines, f"written: {value['out']}"] if value["out"] else lines)
