"""The forgetting table and its statistics, against the worked example and exact cases."""

import json

import numpy as np
import pytest

from engine.evaluation.statistics import FAILED, PASSED, UNDECIDED
from engine.settings import ConfigError
from jobs import results
from jobs.home import Home
from jobs.records import Records
from tests.conftest import PROJECT

ROWS = {"base": (30, 25), "phase1": (40, 20), "phase2": (41, 26), "phase3": (39, 30)}  # METHODS, section 10


@pytest.fixture
def home(tmp_path):
    made = Home(tmp_path)
    made.jobs.mkdir(parents=True)
    return made


def fill(home: Home, rows=ROWS, count=40, gate=None, spread=0.0) -> Records:
    """Evaluations whose means are exactly the given cells."""
    from engine.configs import dump, load

    records = Records(home.records)
    settings = dump(
        load(PROJECT / "configs" / "pocket.yaml", [f"evaluate.gate={gate}"] if gate else ["evaluate.gate=null"])
    )
    noise = np.random.default_rng(0).normal(0, spread, count)
    noise -= noise.mean()
    for number, (phase, cells) in enumerate(rows.items()):
        folder = home.final("run", phase)
        (folder / "evaluations").mkdir(parents=True)
        (folder / "about.json").write_text(json.dumps({"settings": settings}))
        path = folder / "evaluations" / "test.jsonl"
        lines = []
        for modality, cell in zip(("paper", "video"), cells, strict=True):
            for n in range(count):
                value = (cell + (noise[n] if number else 0)) / 100
                scores = {"rouge1": value, "rouge2": value, "rougeL": value, "nll": 1.0}
                lines.append({"id": f"{n}", "modality": modality, "scores": scores, "summary_tokens": 10 + n})
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
        metrics = {
            column: {"rougeL": float(cell), "nll": 1.0, "n": count}
            for column, cell in zip(("papers", "videos"), cells, strict=True)
        }
        records.add_evaluation(
            {
                "run": "run",
                "phase": phase,
                "test_set": "test",
                "path": str(path),
                "metrics": metrics,
                "created": float(number),
            }
        )
    return records


def test_the_worked_example(home):
    value = results.forgetting(home, fill(home), "run")
    assert value["rows"] == ["base", "phase1", "phase2", "phase3"] and value["columns"] == ["papers", "videos"]
    assert value["matrix"] == [[30, 25], [40, 20], [41, 26], [39, 30]]
    assert value["backward_transfer"] == {"papers": -1, "videos": None}
    papers = value["change"]["papers"]
    assert (papers["points"], papers["percent"], papers["n"]) == (9, 30, 40)
    assert papers["ci95"] == pytest.approx([9, 9]) and papers["p"] < 0.01
    assert value["gate"] is None


def test_cells_not_measured_are_null_and_never_zero(home):
    value = results.forgetting(home, fill(home, {"base": (30, 25), "phase1": (40, 20)}), "run", statistics=False)
    assert value["rows"] == ["base", "phase1"] and value["change"]["videos"] == {"points": -5, "percent": -20, "n": 40}
    assert value["backward_transfer"] == {"papers": None, "videos": None}


def test_the_gate_passes_fails_and_abstains(home, tmp_path):
    gate = "{metric: rougeL, videos: -1.0}"
    for name, cells, spread, verdict in (
        ("pass", (39, 25), 0.1, PASSED), ("fail", (39, 20), 0.1, FAILED), ("open", (39, 25), 9.0, UNDECIDED),
    ):  # fmt: skip
        other = Home(tmp_path / name)
        other.jobs.mkdir(parents=True)
        records = fill(other, {"base": (30, 25), "phase1": cells}, 10, gate, spread)
        assert results.forgetting(other, records, "run")["gate"]["verdict"] == verdict, name


def test_the_table_for_a_terminal(home):
    text = results.forgetting_text(results.forgetting(home, fill(home), "run"))
    assert "phase1        40.0 +10.0 ▲          20.0 -5.0 ▼" in text
    assert "papers: +9.0 (+30 %) against base, 95 %" in text


def test_unknown_runs_and_metrics(home):
    with pytest.raises(ConfigError, match="no such run. Known: none yet"):
        results.forgetting(home, Records(home.records), "x")
    only_base = fill(home, {"base": (1, 2)})
    assert results.forgetting(home, only_base, "run", statistics=False)["change"] == {}
    with pytest.raises(ConfigError, match="--metric bleu: unknown"):
        results.forgetting(home, only_base, "run", metric="bleu")
