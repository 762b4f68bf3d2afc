"""Evaluations as a job leaves them, with scores whose means are given."""

import json
from pathlib import Path

import numpy as np

from engine.configs import dump, load
from engine.corpus import terms
from engine.corpus.split import read_test
from engine.evaluation import score
from jobs.home import Home
from jobs.records import Records
from tests.conftest import PROJECT

POCKET = PROJECT / "data" / "pocket"
ROWS = {"base": (30, 25), "phase1": (40, 20), "phase2": (41, 26), "phase3": (39, 30)}  # METHODS, section 10


def fill(home: Home, rows=ROWS, count=40, gate=None, spread=0.0, run="run", overrides=(), groups=0) -> Records:
    """Evaluations whose means are exactly the given cells."""
    records = Records(home.records)
    settings = dump(load(PROJECT / "configs" / "pocket.yaml", [f"evaluate.gate={gate or 'null'}", *overrides]))
    noise = np.random.default_rng(0).normal(0, spread, count)
    noise -= noise.mean()
    for number, (phase, cells) in enumerate(rows.items()):
        folder = home.final(run, phase)
        (folder / "evaluations").mkdir(parents=True)
        about = {"run": run, "phase": phase, "step": 1, "created": 1.0, "parent": None, "settings": settings}
        (folder / "about.json").write_text(json.dumps(about))
        (folder / "manifest.json").write_text("{}")
        path = folder / "evaluations" / "test.jsonl"
        lines = []
        for modality, cell in zip(("paper", "video"), cells, strict=True):
            for n in range(count):
                value = (cell + (noise[n] if number else 0)) / 100
                scores = {"rouge1": value, "rouge2": value, "rougeL": value, "nll": 1.0}
                group = {"group": f"g{n % groups}"} if groups else {}
                lines.append(
                    {"id": f"{n}", "modality": modality, "scores": scores, "summary_tokens": 10 + n, "reference": "r"}
                    | {"output": phase, "source_tokens": 9}
                    | group
                )
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
        (path.with_suffix(".json")).write_text(json.dumps({"metrics": _means(cells, count)}))
        metrics = _means(cells, count)
        records.add_evaluation(
            {
                "run": run,
                "phase": phase,
                "test_set": "test",
                "path": str(path),
                "metrics": metrics,
                "created": float(number),
            }
        )
    return records


def _means(cells, count: int) -> dict:
    return {
        column: {"rougeL": float(cell), "nll": 1.0, "n": count}
        for column, cell in zip(("papers", "videos"), cells, strict=True)
    }


def judge(home: Home, run: str, phase: str, outputs: dict[str, str], overrides=(), encoder="e") -> Path:
    """A checkpoint judged on the bundled test set, really scored. outputs: {document id: text}; {} writes references."""
    records = {record.id: record for record in read_test(POCKET / "test.jsonl")}
    rows = [
        {"id": r.id, "modality": r.modality, "source_tokens": 9, "summary_tokens": 10, "output_tokens": 5}
        | {"reference": r.summary, "output": outputs.get(r.id, r.summary), "scores": {"nll": 1.0}}
        for r in records.values()
    ]
    words = terms.load(POCKET / "terms.txt")
    rows, scored_by = score.rows(rows, [record.source for record in records.values()], None, words)
    folder = home.final(run, phase)
    (folder / "evaluations").mkdir(parents=True)
    given = [f"data.{name}={POCKET / file}" for name, file in (("terms", "terms.txt"), ("test", "test.jsonl"))]
    settings = dump(load(PROJECT / "configs" / "pocket.yaml", [*given, *overrides]))
    about = {"run": run, "phase": phase, "model": "m", "step": 3, "created": 5.0, "parent": None, "settings": settings}
    (folder / "about.json").write_text(json.dumps(about))
    (folder / "manifest.json").write_text("{}")
    path = folder / "evaluations" / "test.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    summary = {"fingerprint": "f", "outputs": "o", "metrics": score.columns(rows), "created": 7.0}
    summary |= {"scored_by": scored_by | {"bertscore": encoder}, "test_file": str(POCKET / "test.jsonl")}
    path.with_suffix(".json").write_text(json.dumps(summary))
    return folder
