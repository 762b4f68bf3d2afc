"""The catalogue of evaluations: queries, and what is left when it is lost; promotion by the gate."""

import json

import pytest

from engine.settings import ConfigError
from jobs import catalogue, commands
from jobs.home import Home
from jobs.promote import promote
from jobs.records import Job, Records
from tests.stored import fill, judge


@pytest.fixture
def home(tmp_path, monkeypatch) -> Home:
    monkeypatch.setenv("HYBRIDSUM_HOME", str(tmp_path))
    return Home.find()


def test_queries_by_run_phase_metric_and_date(home):
    records = fill(home)
    fill(home, {"base": (1, 2)}, run="other")
    names = [(row["run"], row["phase"]) for row in records.evaluations(run="run")]
    assert names == [("run", "base"), ("run", "phase1"), ("run", "phase2"), ("run", "phase3")]
    assert [row["run"] for row in records.evaluations(phase="base")] == ["run", "other"]
    assert [row["phase"] for row in records.evaluations(since=2.0)] == ["phase2", "phase3"]
    assert len(records.evaluations(metric="rougeL")) == 5 and records.evaluations(metric="term_recall") == []
    assert records.evaluations(run="run", phase="phase1", metric="nll", since=5.0) == []


def test_a_lost_catalogue_is_made_anew_from_the_checkpoints(home, capsys):
    judge(home, "a", "phase1", {})
    judge(home, "a", "base", {})
    broken = judge(home, "b", "phase1", {}) / "evaluations" / "test.json"
    broken.write_text("{half")
    records = Records(home.records)
    records.add([Job("", "phase", "a", "phase1")])
    records.add_evaluation({"run": "gone", "phase": "x", "test_set": "t", "metrics": {}, "created": 1.0, "path": "p"})
    count, complaints = catalogue.reindex(home, records)
    assert count == 2 and str(broken) in complaints[0] and "Evaluate again" in complaints[0]
    assert {(row["run"], row["phase"], row["test_set"]) for row in records.evaluations()} == {
        ("a", "base", "test"), ("a", "phase1", "test"),
    }  # fmt: skip
    row = records.evaluations(phase="phase1")[0]
    assert row["path"] == str(home.final("a", "phase1") / "evaluations" / "test.jsonl") and row["created"] == 7.0
    assert list(records.jobs()) == ["1"]
    home.records.unlink()
    commands.main(["doctor", "--reindex"], lambda home: None)
    assert "2 evaluations are in the catalogue" in capsys.readouterr().err
    assert len(Records(home.records).evaluations()) == 2


def test_checkpoints_are_listed_by_run_phase_and_day(home, capsys):
    judge(home, "a", "phase1", {})
    judge(home, "b", "phase2", {})

    def listed(*options):
        assert commands.main(["checkpoints", *options, "--json"], lambda home: None) == 0
        return [row["run"] for row in json.loads(capsys.readouterr().out)]

    assert listed() == ["a", "b"] and listed("--run", "b") == ["b"] and listed("--phase", "phase1") == ["a"]
    assert listed("--since", "1999-01-01") == []  # both were made on the first day of 1970
    assert commands.main(["checkpoints", "--sort", "videos.rougeL"], lambda home: None) == 0
    assert "videos.rougeL" in capsys.readouterr().out


def test_promotion_is_refused_where_the_gate_failed(home, capsys):
    fill(home, {"base": (30, 25), "phase1": (40, 24.9), "phase2": (40, 10)}, gate="{videos: -1.0}", spread=0.1)
    good, bad = (home.final("run", phase) for phase in ("phase1", "phase2"))
    assert commands.main(["promote", str(good)], lambda home: None) == 0
    assert "run/best is now phase1 (gate PASSED)" in capsys.readouterr().out
    assert commands.main(["promote", str(bad)], lambda home: None) == 2
    assert "its gate failed (videos: -15.00 ROUGE-L against base" in capsys.readouterr().err
    assert (home.run("run") / "best").resolve() == good.resolve()
    assert commands.main(["promote", str(bad), "--regardless"], lambda home: None) == 0
    assert (home.run("run") / "best").resolve() == bad.resolve()
    with pytest.raises(ConfigError, match="only a checkpoint under"):
        promote(home, Records(home.records), home.final("run", "base"))
    (good / "manifest.json").unlink()
    with pytest.raises(ConfigError, match="manifest.json is missing"):
        promote(home, Records(home.records), good)
