"""The forgetting table and its statistics, against the worked example and exact cases."""

import json
from pathlib import Path

import pytest

from engine.evaluation.statistics import FAILED, PASSED, UNDECIDED
from engine.settings import ConfigError
from jobs import checkpoints, gate, matrix, results, seeds
from jobs.home import Home
from jobs.records import Records
from tests.stored import fill


@pytest.fixture
def home(tmp_path):
    made = Home(tmp_path)
    made.jobs.mkdir(parents=True)
    return made


def test_the_worked_example(home):
    value = results.forgetting(home, fill(home), "run")
    assert value["rows"] == ["base", "phase1", "phase2", "phase3"] and value["columns"] == ["papers", "videos"]
    assert value["matrix"] == [[30, 25], [40, 20], [41, 26], [39, 30]]
    assert value["backward_transfer"] == {"papers": -1, "videos": None}
    papers = value["change"]["papers"]
    assert (papers["points"], papers["percent"], papers["n"]) == (9, 30, 40)
    assert papers["ci95"] == pytest.approx([9, 9]) and papers["p"] < 0.01
    assert value["gate"] is None
    assert value["forgetting"] == {"papers": 2, "videos": None}
    assert value["forward_transfer"] == {"papers": None, "videos": -5}
    assert value["retention"] == {"papers": 97.5, "videos": None}
    assert value["base_retention"]["videos"] == [100, 80, 104, 120]
    assert (value["intransigence"], value["joint"]) == ({}, None)


def test_one_column_one_phase_a_negative_metric_and_a_missing_cell():
    assert matrix.forgetting([-2.0, -1.0, -1.2, -1.15], 1, 3, 1) == pytest.approx(0.15)  # 0 is no cell
    assert matrix.forgetting([2.0, 1.0, 1.2, 1.15], 1, 3, -1) == pytest.approx(0.15)  # nats: less is better
    assert matrix.forgetting([3.0, 4.0, None, 4.5], 1, 3, 1) == -0.5  # a gain has its sign
    assert matrix.forgetting([3.0, None, None, 4.5], 1, 3, 1) is None
    assert matrix.backward_transfer([3.0, 4.0], 1, 1) is None
    assert matrix.forward_transfer([3.0, 4.0], 1) is None and matrix.forward_transfer([3.0, 4.0, 5.0], 2) == 1.0
    assert matrix.intransigence([3.0, 4.0], 1, 5.0, 1) == 1.0 and matrix.intransigence([3.0, 4.0], None, 5.0, 1) is None
    assert matrix.intransigence([3.0, 1.0], 1, 0.8, -1) == pytest.approx(0.2)
    assert matrix.base_retention([40.0, None, 30.0]) == [100, None, 75]
    assert matrix.learning_row([0, 0.4, 0.6]) == 2 and matrix.learning_row([0, 0]) is None
    assert matrix.first_row([0, 0, 0.4]) == 2 and matrix.first_row([]) is None


def test_a_column_that_has_only_a_likelihood_shows_that(home):
    records = fill(home, {"base": (30, 25), "phase1": (40, 20)})
    for row, nats in zip(records.evaluations(), (3.0, 3.4), strict=True):
        records.add_evaluation(row | {"metrics": row["metrics"] | {"general": {"nll": nats, "n": 9}}})
    value = results.forgetting(home, records, "run")
    assert value["columns"] == ["papers", "videos", "general"] and value["metric_of"]["general"] == "nll"
    assert [row[2] for row in value["matrix"]] == [3.0, 3.4]
    assert value["change"]["general"]["points"] == pytest.approx(0.4) and "ci95" not in value["change"]["general"]
    assert "3.400 +0.400 ▼" in results.forgetting_text(value)


def test_plasticity_against_a_joint_run(home):
    records = fill(home, {"base": (30, 25), "phase1": (40, 20), "phase2": (41, 26), "phase3": (39, 30)})
    phases = "[{name: all, mixture: {papers: 0.5, videos: 0.5}, steps: 3}]"
    fill(home, {"all": (43, 29)}, run="joint", overrides=[f"curriculum.phases={phases}"])
    value = results.forgetting(home, records, "run", statistics=False)
    assert value["joint"] == "joint/all" and value["intransigence"] == {"papers": 3, "videos": -1}
    assert "short of joint training (joint/all): papers +3.0, videos -1.0" in results.forgetting_text(value)


def test_the_gate_can_hold_a_phase_to_the_one_before(home):
    rows = {"base": (30, 25), "phase1": (40, 25), "phase2": (36, 25)}
    records = fill(home, rows, gate="{metric: rougeL, papers: -0.5, against: previous}", spread=0.1)
    found = results.forgetting(home, records, "run")["gate"]
    assert (found["verdict"], found["against"]) == (FAILED, "phase1")
    assert found["columns"]["papers"]["points"] == pytest.approx(-4) and found["columns"]["papers"]["margin"] == -0.5
    assert gate.after_evaluation(home, records, "run", "phase1")["verdict"] == PASSED
    assert gate.after_evaluation(home, records, "run", "base") is None
    with pytest.raises(ConfigError, match="run/phase2: its gate failed .*--regardless"):
        gate.demand_passed(home, records, "run", "phase2")
    gate.demand_passed(home, records, "run", "phase2", regardless=True)
    gate.demand_passed(home, records, "run", "phase1")


def test_two_identical_checkpoints_pass(home):
    records = fill(home, {"base": (30, 25), "phase1": (30, 25)}, gate="{videos: -0.5, papers: -0.5}")
    found = results.forgetting(home, records, "run")["gate"]
    assert found["verdict"] == PASSED and found["columns"]["videos"]["points"] == 0


def test_a_difference_below_what_can_be_detected_is_too_few_documents(home):
    records = fill(home, {"base": (30, 25), "phase1": (40, 24.5)}, 30, "{videos: -1.0}", spread=6.0)
    column = results.forgetting(home, records, "run")["gate"]["columns"]["videos"]
    assert column["verdict"] == UNDECIDED and abs(column["points"]) < column["detectable"]
    text = results.forgetting_text(results.forgetting(home, records, "run"))
    assert "no difference shown (detectable: 2.5)" in text and "NOT ENOUGH DOCUMENTS" in text


def test_groups_are_the_unit(home):
    records = fill(home, {"base": (30, 25), "phase1": (40, 20)}, 40, groups=10)
    change = results.forgetting(home, records, "run")["change"]["papers"]
    assert change["n"] == 10 and change["points"] == 10


def test_checkpoints_are_sorted_by_any_metric(home):
    for run, cells in (("a", (40, 20)), ("b", (30, 25)), ("c", (35, 30))):
        fill(home, {"phase1": cells}, run=run)
    order = {
        sort: [row["run"] for row in checkpoints.checkpoints(home, sort)]
        for sort in ("papers.rougeL", "videos.rougeL", "nll")
    }
    assert order == {"papers.rougeL": ["a", "c", "b"], "videos.rougeL": ["c", "b", "a"], "nll": ["a", "b", "c"]}
    with pytest.raises(ConfigError, match="--sort papers.bleu: unknown metric"):
        checkpoints.checkpoints(home, "papers.bleu")


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


def test_both_headline_metrics_stand_in_the_report(home):
    records = fill(home, {"base": (30, 25), "phase1": (40, 20)})
    value = results.forgetting(home, records, "run")
    assert results.report(home, records, value) == results.forgetting_text(value)  # no BERTScore was measured
    for row, f1 in zip(records.evaluations(), (0.7, 0.9), strict=True):
        metrics = {column: means | {"bertscore_f1": 100 * f1} for column, means in row["metrics"].items()}
        records.add_evaluation(row | {"metrics": metrics})
        path = Path(row["path"])
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        path.write_text("".join(json.dumps(n | {"scores": n["scores"] | {"bertscore_f1": f1}}) + "\n" for n in lines))
    text = results.report(home, records, value)
    assert "run · ROUGE-L" in text and "run · BERTScore F1" in text and "90.0 +20.0 ▲" in text


def test_several_seeds_are_taken_together(home):
    for run, papers in (("s0", 40), ("s1", 42), ("s2", 44)):
        records = fill(home, {"base": (30, 25), "phase1": (papers, 25)}, run=run)
    found = seeds.over_seeds(home, records, ["s0", "s1", "s2"], "rougeL")
    assert found["papers"]["points"] == pytest.approx(12) and found["papers"]["seeds"] == 3
    assert found["papers"]["each"] == {"s0": pytest.approx(10), "s1": pytest.approx(12), "s2": pytest.approx(14)}
    assert found["papers"]["ci95"] == pytest.approx([10, 14])  # 3 of 3^3 draws are three times the lowest seed
    assert found["videos"]["points"] == 0 and found["videos"]["p"] == 1
    assert "papers: +12.0, 95 % [+10.0, +14.0]" in seeds.text(found, "rougeL")
    fill(home, {"base": (30, 25), "phase1": (40, 25)}, count=7, run="few")
    for runs, words in ((["s0"], "one or more other runs"), (["s0", "few"], "not judged on the same documents")):
        with pytest.raises(ConfigError, match=words):
            seeds.over_seeds(home, records, runs, "rougeL")
    fill(home, {"base": (30, 25)}, run="bare")
    with pytest.raises(ConfigError, match="run bare: the base and a phase must be judged"):
        seeds.over_seeds(home, records, ["s0", "bare"], "rougeL")
