"""Texts that stand, or nearly stand, on both sides of a division: what is judged must not be trained on. Light."""

import tempfile
from collections.abc import Sequence
from pathlib import Path

from engine.corpus.duplicates import Documents
from engine.corpus.records import Record

SHOWN = 20


def between(parts: dict[str, Sequence[Record]]) -> list[dict]:
    """[{parts: [a, b], count, examples: [[id, id], ...]}] for every two parts that share a (nearly) equal source.

    count: records of the second part that have a counterpart in the first.
    """
    names = [name for name, records in parts.items() for _ in records]
    records = [record for part in parts.values() for record in part]
    with tempfile.TemporaryDirectory() as folder:
        documents = Documents(Path(folder))
        for record in records:
            documents.add(record.source)
        keys = documents.clusters().keys.tolist()
        documents.close()
    first: dict[tuple[int, str], str] = {}  # (cluster, part) -> an id
    for key, name, record in zip(keys, names, records, strict=True):
        first.setdefault((key, name), record.id)
    found: dict[tuple[str, str], list[list[str]]] = {}
    for key, name, record in zip(keys, names, records, strict=True):
        for earlier in list(parts)[: list(parts).index(name)]:
            if (key, earlier) in first:
                found.setdefault((earlier, name), []).append([first[key, earlier], record.id])
    return [{"parts": list(pair), "count": len(ids), "examples": ids[:SHOWN]} for pair, ids in found.items()]
