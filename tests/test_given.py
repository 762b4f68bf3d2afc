"""Outputs that exist already, scored without a model."""

import json

import pytest

from engine.configs import load
from engine.evaluation import given
from engine.settings import ConfigError
from jobs import commands
from jobs import given as scoring
from tests.conftest import PROJECT

TEST = PROJECT / "data" / "pocket" / "test.h5"
PLAIN = ["evaluate.bertscore_model=none"]


def rows(path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture
def predictions(tmp_path):
    """The references themselves, in reverse order, the first of them left empty."""
    path = tmp_path / "out.jsonl"
    lines = [
        {"id": row["id"], "prediction": row["summary"]}
        for row in reversed(rows(TEST.with_suffix(".jsonl")))
        if "summary" in row
    ]
    lines[-1]["prediction"] = ""
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_scores_by_id_against_hdf5_records(predictions, tmp_path):
    value = given.run(predictions, TEST, tmp_path / "scores.jsonl", load(None, PLAIN))
    assert value["documents"] == 200 and list(value["metrics"]) == ["papers", "videos"]
    assert value["metrics"]["papers"]["rougeL"] == 99 and value["metrics"]["papers"]["empty"] == 1
    assert value["metrics"]["videos"]["rougeL"] == 100 and "nll" not in value["metrics"]["papers"]
    first = rows(tmp_path / "scores.jsonl")[0]
    assert first["output"] == "" and first["scores"]["rougeL"] == 0


def test_lines_of_text_need_no_records(tmp_path):
    (tmp_path / "a.txt").write_text("the cat sat\na b\n")
    (tmp_path / "b.txt").write_text("the cat sat\nc d\n")
    value = given.run(tmp_path / "a.txt", tmp_path / "b.txt", None, load(None, PLAIN))
    assert value["metrics"]["text"]["rouge1"] == 50 and value["metrics"]["text"]["novelty"] is None
    (tmp_path / "a.txt").write_text("one line")
    with pytest.raises(ConfigError, match="1 lines for 2 references"):
        given.run(tmp_path / "a.txt", tmp_path / "b.txt", None, load(None, PLAIN))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda lines: lines[1:], "no prediction for id"),
        (lambda lines: [*lines, '{"id": "x", "output": "y"}'], "no reference for id x"),
        (lambda lines: [*lines, lines[0]], "stands twice"),
        (lambda lines: [*lines, '{"id": "x", "text": 3}'], "line 201: not an object with id and one of output"),
    ],
)
def test_what_does_not_belong_together_is_refused(predictions, change, words):
    predictions.write_text("\n".join(change(predictions.read_text().splitlines())))
    with pytest.raises(ConfigError, match=words):
        given.run(predictions, TEST, None, load(None, PLAIN))


def test_progress_comes_while_documents_are_scored(predictions, monkeypatch, capsys):
    """With a report after every document: one line each, then the whole, and nothing of it on stdout."""
    monkeypatch.setattr(given.score, "REPORT_EVERY", 0.0)
    assert given.main([str(predictions), str(TEST), "", *PLAIN]) == 0
    said = capsys.readouterr()
    expected = [f"progress: scoring {done} of 200 documents" for done in range(201)]
    assert said.err.splitlines() == expected and json.loads(said.out)["documents"] == 200


def test_what_the_caller_hears_is_progress_alone(predictions):
    heard = []
    value = scoring.score(predictions, TEST, None, PLAIN, heard.append)
    assert heard[-1] == "scoring 200 of 200 documents" and not any("progress" in line for line in heard)
    assert value["warnings"] == [] and value["documents"] == 200


@pytest.mark.engine
def test_on_the_command_line_with_bertscore(predictions, capsys):
    arguments = ["evaluate", "--predictions", str(predictions), "--references", str(TEST)]
    assert commands.main([*arguments, "--json"], lambda home: None) == 0
    said = capsys.readouterr()
    value = json.loads(said.out)
    assert "scoring 200 of 200 documents" in said.err and "bertscore 200 of 200 documents" in said.err
    assert value["metrics"]["videos"]["bertscore_f1"] == pytest.approx(100, abs=1e-3)
    assert value["metrics"]["papers"]["bertscore_f1"] == pytest.approx(99, abs=1e-3)  # one is empty
    assert value["scored_by"]["bertscore"] == "all-MiniLM-L6-v2, layer 6"
    assert commands.main([*arguments, *PLAIN], lambda home: None) == 0
    assert "ROUGE-L" in capsys.readouterr().out
    for wrong, words in (
        (arguments[:3], "--predictions and --references together"),
        ([*arguments, "evaluate.bertscore_model=/nowhere"], "/nowhere could not be loaded"),
        ([*arguments[:4], "/gone.jsonl"], "/gone.jsonl: no such file"),
        (["evaluate", "--checkpoint", "x", "train.seed=1"], "by the settings it was trained with"),
    ):
        assert commands.main(wrong, lambda home: None) == 2
        assert words in capsys.readouterr().err
