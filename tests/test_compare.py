"""Two checkpoints side by side: the numbers, the tests behind them, what is lost, and the files that leave."""

import csv
import io
import json
import time

import numpy as np
import pytest

from engine import events as ev
from engine.corpus.split import read_test
from engine.evaluation.statistics import holm, paired
from engine.settings import ConfigError
from jobs import commands, compare, compare_tests, compare_text
from jobs.home import Home
from jobs.records import Job, Records
from tests.stored import POCKET, judge

RECORDS = {record.id: record for record in read_test(POCKET / "test.jsonl")}


@pytest.fixture
def home(tmp_path, monkeypatch) -> Home:
    monkeypatch.setenv("HYBRIDSUM_HOME", str(tmp_path))
    return Home.find()


@pytest.fixture
def pair(home) -> Home:
    """A writes every reference; B forgets how to write about videos, ever more from one document to the next."""
    videos = [r for r in RECORDS.values() if r.modality == "video"]
    worse = {r.id: " ".join(r.summary.split()[: 20 - k // 6]) for k, r in enumerate(videos)}
    judge(home, "good", "phase1", {})
    judge(home, "bad", "phase1", worse, ["distil.base=0", "train.seed=4"])
    return home


def scores(folder, column: str, metric: str) -> list[float]:
    rows = [json.loads(line) for line in (folder / "evaluations" / "test.jsonl").read_text().splitlines()]
    return [row["scores"][metric] for row in rows if row["modality"] == column.rstrip("s")]


def test_the_shape_and_the_numbers(pair):
    value = compare_tests.full(pair, ["good/phase1", "bad/phase1"], None)
    assert [c["name"] for c in value["checkpoints"]] == ["good/phase1", "bad/phase1"]
    a, b = (scores(pair.final(run, "phase1"), "videos", "rougeL") for run in ("good", "bad"))
    assert value["metrics"]["videos.rougeL"] == pytest.approx([100 * np.mean(a), 100 * np.mean(b)])
    tests = {test["metric"]: test for test in value["tests"]}
    direct = paired(100 * (np.array(b) - np.array(a)))
    found = tests["videos.rougeL"]
    assert found["difference"] == pytest.approx(direct.mean, abs=1e-9)
    assert found["ci95"] == pytest.approx(direct.ci95, abs=1e-9) and found["p"] == pytest.approx(direct.p, abs=1e-9)
    assert (found["a"], found["b"], found["n"]) == ("good/phase1", "bad/phase1", 100)
    assert [t["p_holm"] for t in value["tests"]] == pytest.approx(holm([t["p"] for t in value["tests"]]), abs=1e-12)
    assert tests["papers.rougeL"]["difference"] == 0 and tests["papers.rougeL"]["p"] == 1
    assert set(tests) == {f"{c}.{m}" for c in ("papers", "videos") for m in ("rougeL", "nll", "term_recall")} | {
        "general.nll"
    }
    assert value["settings_changed"] == {"distil.base": [0.5, 0.0], "train.seed": [0, 4]}
    assert value["warnings"] == []


def test_documents_come_worst_first_with_source_and_lost_terms(pair):
    value = compare_tests.full(pair, ["good/phase1", "bad/phase1"], None, count=200)
    changes = [sample["change"] for sample in value["samples"]]
    assert changes == sorted(changes) and changes[0] < -30 and changes[-1] == 0 and len(changes) == 200
    first = value["samples"][0]
    record = RECORDS[first["id"]]
    assert (first["source"], first["reference"]) == (record.source, record.summary)
    assert first["outputs"][0] == record.summary and record.summary.startswith(first["outputs"][1])
    assert first["terms_lost"][0] == [] and set(first["terms_lost"][1]) <= set(first["terms"])
    assert any(sample["terms_lost"][1] for sample in value["samples"])


def test_of_a_likelihood_what_rose_is_worse(pair):
    path = pair.final("bad", "phase1") / "evaluations" / "test.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    rows[7]["scores"]["nll"] = 3.0
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    first = compare.ranked(compare.load(pair, ["good/phase1", "bad/phase1"]), "nll")[0]
    assert (first.id, first.values, first.change) == (rows[7]["id"], (1.0, 3.0), -2.0)


def test_three_checkpoints_are_each_held_to_the_first(pair):
    judge(pair, "third", "phase2", {})
    value = compare_tests.full(pair, ["good/phase1", "bad/phase1", "third/phase2"], None, ["rougeL"])
    assert [(t["metric"], t["a"], t["b"]) for t in value["tests"] if t["metric"] == "videos.rougeL"] == [
        ("videos.rougeL", "good/phase1", "bad/phase1"),
        ("videos.rougeL", "good/phase1", "third/phase2"),
    ]
    assert len(value["metrics"]["papers.rougeL"]) == 3 and len(value["samples"][0]["outputs"]) == 3


def test_what_cannot_be_compared_is_refused_or_said(pair, tmp_path):
    judge(pair, "other", "phase1", {}, encoder="another")
    found = compare.load(pair, ["good/phase1", "other/phase1"])
    assert "different encoders (e | another)" in found.warnings[0]
    assert not [metric for _, metric in compare.metric_rows(found) if metric.startswith("bertscore")]
    for given, words in (
        (["good/phase1"], "two or more different checkpoints"),
        (["good/phase1", "good/phase1/final"], "two or more different checkpoints"),
        (["good/phase1", "nowhere"], "no such folder"),
    ):
        with pytest.raises(ConfigError, match=words):
            compare.load(pair, given)
    with pytest.raises(ConfigError, match="was not judged on quiz"):
        compare.load(pair, ["good/phase1", "bad/phase1"], "quiz")
    with pytest.raises(ConfigError, match="--metric bleu: unknown"):
        compare_tests.full(pair, ["good/phase1", "bad/phase1"], None, ["bleu"])
    for run, documents in (("good", "1"), ("bad", "2")):
        path = pair.final(run, "phase1") / "evaluations" / "test.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"documents": documents}))
    with pytest.raises(ConfigError, match="hold different documents"):
        compare.load(pair, ["good/phase1", "bad/phase1"])
    summary = pair.final("bad", "phase1") / "evaluations" / "test.json"
    summary.rename(summary.with_name("elsewhere.json"))
    with pytest.raises(ConfigError, match="no test set that all were judged on"):
        compare.load(pair, ["good/phase1", "bad/phase1"])


def test_a_test_file_that_is_gone_costs_the_sources_only(pair):
    path = pair.final("good", "phase1") / "evaluations" / "test.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"test_file": "/gone.jsonl"}))
    value = compare_tests.full(pair, ["good/phase1", "bad/phase1"], None, ["rougeL"])
    assert value["samples"][0]["source"] is None and "/gone.jsonl: no such file" in value["warnings"][0]


def test_text_and_the_files_that_leave(pair, capsys):
    out = pair.root / "out.md"
    arguments = ["compare", "good/phase1", "bad/phase1", "--metric", "rougeL", "--export", str(out)]
    assert commands.main(arguments, lambda home: None) == 0
    text = capsys.readouterr().out
    assert "A good/phase1" in text and "▼ worse" in text and "<0.001***" in text and "terms lost:" in text
    assert "no difference shown (detectable: 0.0)" in text and "distil.base: 0.5 | 0.0" in text
    page = out.read_text()
    assert (
        "| videos ROUGE-L | B - A |" in page
        and "## Settings that differ" in page
        and "| distil.base | 0.5 | 0.0 |" in page
    )
    assert commands.main([*arguments[:-1], str(pair.root / "out.csv"), "--json"], lambda home: None) == 0
    value = json.loads(capsys.readouterr().out)
    rows = {row["metric"]: row for row in csv.DictReader(io.StringIO((pair.root / "out.csv").read_text()))}
    (test,) = [test for test in value["tests"] if test["metric"] == "videos.rougeL"]
    row = rows["videos.rougeL"]
    assert (
        float(row["bad/phase1: difference"]) == test["difference"] and float(row["bad/phase1: low"]) == test["ci95"][0]
    )
    assert row["good/phase1"] == "100.0" and rows["videos.copy"]["bad/phase1: p"] == ""
    compare_text.export(value, pair.root / "out.json")
    assert json.loads((pair.root / "out.json").read_text()) == value
    assert commands.main([*arguments[:-1], str(pair.root / "out.pdf")], lambda home: None) == 2
    assert "ends in .md, .csv, .json" in capsys.readouterr().err


def test_markdown_keeps_foreign_text_from_being_markup(pair):
    value = compare_tests.full(pair, ["good/phase1", "bad/phase1"], None, ["rougeL"], count=1)
    value["samples"][0]["outputs"][1] = "a | b\n# <script> [x](y) \x1b[31m"
    page = compare_text.markdown(value)
    assert "a \\| b \\# \\<script\\> \\[x\\](y)" in page and "\x1b" not in page


def test_loss_curves_are_those_of_the_phase_that_made_the_checkpoint(pair):
    records = Records(pair.records)
    records.add([Job("", "phase", "good", "phase1"), Job("", "evaluate", "good", "phase1")])
    pair.job("1").mkdir()
    write = ev.Writer(pair.events("1"), 1)
    for step, total in ((1, 3.0), (2, 2.0), (2, 2.5)):
        write(ev.Step(step, 2, {"cross_entropy": total}, total, 1e-4, 1.0, 1.0, 0.0))
    found = compare.curves(pair, records, compare.load(pair, ["good/phase1", "bad/phase1"]))
    assert found == {"good/phase1": ([1, 2], [3.0, 2.5])}  # a repeated step counts once


def test_two_times_five_thousand_documents_are_on_the_screen_within_a_second(home):
    """All that the first frame and the list of documents need; the tests come from their own process."""
    for run, shift in (("a", 0.0), ("b", -0.1)):
        folder = judge(home, run, "phase1", {})
        path = folder / "evaluations" / "test.jsonl"
        row = json.loads(path.read_text().splitlines()[0])
        lines = [
            json.dumps(row | {"id": str(n), "scores": row["scores"] | {"rougeL": 0.5 + shift * (n % 7)}}) + "\n"
            for n in range(5000)
        ]
        path.write_text("".join(lines))
    started = time.process_time()
    found = compare.load(home, ["a/phase1", "b/phase1"])
    compare.overview(found)
    assert len(compare.ranked(found, "rougeL")) == 5000
    assert time.process_time() - started < 1.0
