"""On real text: stored scores against rouge-score and bert_score called directly, tests against scipy called directly.

HYBRIDSUM_SCORES="FILE.jsonl OTHER.jsonl" checks the scores files of two evaluations of one's own in the same way.
"""

import json
import os
from pathlib import Path

import bert_score
import numpy as np
import pytest
from rouge_score import rouge_scorer
from scipy.stats import bootstrap, permutation_test

from engine.corpus.records import read
from engine.evaluation import bertscore, score
from engine.evaluation.sentences import splitter
from jobs import scores
from tests.conftest import shared

pytestmark = pytest.mark.engine
COUNT = 40  # documents of each kind


@pytest.fixture(scope="module")
def stored(tmp_path_factory) -> tuple[list[dict], list[dict]]:
    """Two scores files of the same real documents. Without files of one's own: leads of one and of three sentences."""
    if given := os.environ.get("HYBRIDSUM_SCORES"):
        return tuple([json.loads(line) for line in Path(name).read_bytes().splitlines()] for name in given.split())
    records = [r for name in ("papers_medical", "video_medical") for r in read(shared("data", f"{name}.jsonl"))[:COUNT]]
    folder, split = tmp_path_factory.mktemp("scores"), splitter([record.source for record in records])[0]
    made = []
    for sentences in (1, 3):
        rows = [
            {"id": r.id, "modality": r.modality, "reference": r.summary, "summary_tokens": 9, "scores": {}}
            | {"output": " ".join(split(r.source)[:sentences])}
            for r in records
        ]
        rows, _ = score.rows(rows, [record.source for record in records], bertscore.judge("bundled"), None)
        path = folder / f"{sentences}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        made.append([json.loads(line) for line in path.read_text().splitlines()])
    return tuple(made)


def summaries(rows: list[dict]) -> list[dict]:
    return [row for row in rows if row["output"] is not None]


def test_rouge_is_rouge_score_s(stored):
    direct = rouge_scorer.RougeScorer(["rouge1", "rouge2", "rougeL"], use_stemmer=True)
    for rows in stored:
        assert len(summaries(rows)) >= 2 * COUNT
        for row in summaries(rows):
            for name, value in direct.score(row["reference"], row["output"]).items():
                assert row["scores"][name] == pytest.approx(value.fmeasure, abs=1e-9)


def test_bertscore_is_bert_score_s(stored):
    for rows in stored:
        full = [row for row in summaries(rows) if row["output"].strip()]
        again, _ = score.rows(full, [None] * len(full), bertscore.judge("bundled"), None)
        parts = bert_score.score(
            [row["output"] for row in full], [row["reference"] for row in full],
            model_type=bertscore.judge("bundled").model, num_layers=6,
        )  # fmt: skip
        for name, values in zip(("precision", "recall", "f1"), parts, strict=True):
            ours = [row["scores"][f"bertscore_{name}"] for row in again]
            assert ours == pytest.approx(values.tolist(), abs=1e-9)
            if f"bertscore_{name}" in full[0]["scores"]:
                # what another process stored: sums in float32 depend on where in memory the numbers lie
                stored_then = [row["scores"][f"bertscore_{name}"] for row in full]
                assert stored_then == pytest.approx(values.tolist(), abs=1e-6)


@pytest.mark.parametrize("column", ["papers", "videos"])
@pytest.mark.parametrize("metric", ["rougeL", "rouge1"])
def test_p_values_and_intervals_are_scipy_s(stored, column, metric, tmp_path):
    old, new = (write(tmp_path / f"{k}.jsonl", rows) for k, rows in enumerate(stored))
    values, groups = scores.differences(old, new, column, metric)
    by_hand = [
        100 * (new[column, name]["scores"][metric] - old[column, name]["scores"][metric])
        for c, name in new
        if c == column
    ]
    assert values == pytest.approx(by_hand, abs=1e-12)
    units: dict[str, list[float]] = {}
    for value, group in zip(values, groups, strict=True):
        units.setdefault(group, []).append(value)
    # several documents of one origin count once, with the weight of all of them
    differences = np.array([sum(each) * len(units) / len(values) for each in units.values()])
    found = scores.compared(old, new, column, metric)
    assert found.n == len(units) and found.mean == pytest.approx(np.mean(by_hand), abs=1e-9)
    for level, ours in ((0.95, found.ci95), (0.90, (found.lower, found.upper))):
        direct = bootstrap(
            (differences,),
            np.mean,
            method="BCa",
            confidence_level=level,
            n_resamples=9999,
            rng=np.random.default_rng(0),
        ).confidence_interval
        assert ours == pytest.approx((direct.low, direct.high), abs=1e-9)
    direct = permutation_test(
        (differences,), np.mean, permutation_type="samples", n_resamples=9999, vectorized=True,
        rng=np.random.default_rng(0),
    )  # fmt: skip
    assert found.p == pytest.approx(direct.pvalue, abs=1e-9)


def write(path: Path, rows: list[dict]) -> scores.Documents:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return scores.documents(path)
