"""The verb `pair`: papers and videos on the same subject, for review. The encoder runs in a child."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from engine.corpus.records import Record, read, to_dict
from engine.corpus.writing import Writer
from engine.settings import ConfigError
from jobs import child
from jobs.terms import DEFAULT

SHOWN = 10


def run(
    papers: Path, videos: Path, out: Path, lexicon: Path | None, threshold: float, say: Callable[[str], None]
) -> dict[str, Any]:
    """Write the pairs as records (both sides, one after the other) and NAME.review.jsonl. Raises ConfigError."""
    if out.suffix.lower() != ".jsonl" or not out.parent.is_dir():
        raise ConfigError(f"--out {out}: name a .jsonl file in a folder that exists")
    sides = read(papers, "paper", False), read(videos, "video", False)  # complaints come before the encoder is loaded
    spec = {"papers": papers, "videos": videos, "terms": lexicon or DEFAULT}
    paths = {name: str(path.absolute()) for name, path in spec.items()}
    found = child.run("engine.pairing", paths | {"threshold": threshold}, say)
    review = out.with_name(f"{out.stem}.review.jsonl")
    records, rows = Writer(out, (), False), Writer(review, (), False)
    for number, pair in enumerate(found["pairs"], 1):
        paper, video = sides[0][pair["paper"]], sides[1][pair["video"]]
        name = paper.pair_id.strip() if pair["given"] else f"mined-{number:05d}"
        records.add(_side(paper, name))
        records.add(_side(video, name))
        rows.add({"pair_id": name, **pair, "paper": _brief(paper), "video": _brief(video)})
    records.done()
    rows.done()
    return {**found, "out": str(out), "review": str(review), "threshold": threshold}


def _side(record: Record, name: str) -> dict[str, Any]:
    return to_dict(record) | {"pair_id": name}


def _brief(record: Record) -> dict[str, str | None]:
    return {"id": record.id, "title": record.title, "summary": record.summary}


def text(value: dict[str, Any]) -> str:
    """The best and the worst pairs, for a person."""
    pairs = value["pairs"]
    named = sum(pair["given"] for pair in pairs)
    head = f"{len(pairs):,} pairs of {value['papers']:,} papers and {value['videos']:,} videos: {named:,} given, {len(pairs) - named:,} mined at {value['threshold']:g} or above"
    rows = [
        f"  {pair['score']:.3f}  {'given' if pair['given'] else 'mined'}  {', '.join(pair['shared_terms'][:6]) or '(no shared term)'}"
        for pair in pairs[:SHOWN]
    ]
    return "\n".join(
        [head, *rows, f"records: {value['out']}", f"for review, with titles and summaries: {value['review']}"]
    )
