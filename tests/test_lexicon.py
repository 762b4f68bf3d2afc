"""Making a lexicon: variants become one, coverage is counted, candidates are what stands out."""

import json
import math

import pytest

from engine.corpus import lexicon
from engine.corpus.records import Record, read, write_jsonl
from engine.corpus.terms import Lexicon, load
from tests.conftest import PROJECT, shared
from tests.test_cli import hybridsum


@pytest.mark.parametrize(
    "given", ["Heart_Failure", "heart-failure", "HeartFailure", " heart  failure ", "HEART FAILURE"]
)
def test_spellings_of_one_term(given):
    assert lexicon.canonical(given) == "heart failure"


def test_camel_case_splits_before_a_word_and_keeps_abbreviations():
    assert lexicon.canonical("MRIScan") == "mri scan" and lexicon.canonical("HbA1cTest") == "hb a1c test"


def test_variants_are_merged_and_named():
    terms, variants = lexicon.merged(["knee pain", "Knee_Pains", "biopsies", "biopsy", "virus", "KneePain", "lens"])
    assert terms == ("knee pain", "biopsy", "virus", "lens")
    assert variants == {
        "Knee_Pains": "knee pains",
        "KneePain": "knee pain",
        "knee pains": "knee pain",
        "biopsies": "biopsy",
    }


def test_coverage_counts_places_before_and_after():
    texts = ["Knee pains and knee-pain.", "kneepain is one word, knee pain is not", "category"]
    before = ["knee pain", "knee pains", "knee-pain", "KneePain", "cat"]
    assert lexicon.coverage(before, Lexicon(lexicon.merged(before)[0]), texts) == (4, 3)  # kneepain is lost
    assert lexicon.coverage([], Lexicon(()), texts) == (0, 0)


def test_likelihood_ratio_by_hand():
    """10 of 100 against 1 of 100: expected 5.5 each."""
    expected = 2 * (10 * math.log(10 / 5.5) + 1 * math.log(1 / 5.5))
    assert lexicon.likelihood_ratio(10, 100, 1, 100) == pytest.approx(expected)
    assert lexicon.likelihood_ratio(1, 100, 10, 100) == pytest.approx(-expected)
    assert lexicon.likelihood_ratio(5, 50, 10, 100) == pytest.approx(0)


def test_mining_finds_what_is_frequent_here_and_not_in_general():
    ours = ["the carotid artery was open and the other day we saw the carotid artery of the patient."] * 10
    general = ["on the other day the weather was open and the patient was away."] * 10
    terms = [candidate.term for candidate in lexicon.mined(ours, general, Lexicon(()))]
    assert "carotid artery" in terms and not any(term.startswith("the ") for term in terms)
    assert "carotid artery" not in {c.term for c in lexicon.mined(ours, general, Lexicon(("carotid artery",)))}
    assert lexicon.mined(ours, ours, Lexicon(())) == []  # as frequent there as here


def test_usage_counts_terms_and_the_summaries_that_hold_them():
    records = [
        Record("1", "paper", "gout gout", "gout and gouts"),
        Record("2", "paper", "x", "knee-pain"),
        Record("3", "paper", "gout"),
    ]
    assert lexicon.usage(Lexicon(("gout", "knee pain", "absent")), records) == [
        lexicon.Usage("gout", 3, 2, 1),
        lexicon.Usage("knee pain", 0, 1, 1),
    ]  # fmt: skip


def test_the_medical_lexicon_is_clean_and_of_use():
    path = PROJECT / "data" / "medical_terms.txt"
    given = [line for line in path.read_text().splitlines() if not line.startswith("#")]
    assert given == sorted(set(given)) and lexicon.merged(given) == (tuple(given), {})
    records = read(shared("data", "papers_medical.jsonl"))
    holding = sum(any(True for _ in load(path).spans(record.summary)) for record in records)
    assert holding > len(records) / 3


def test_the_verb(tmp_path, monkeypatch):
    monkeypatch.setenv("HYBRIDSUM_HOME", str(tmp_path))
    write_jsonl(
        tmp_path / "a.jsonl", [Record(str(n), "paper", "the vagus nerve stimulation of gout", "gout") for n in range(9)]
    )
    (tmp_path / "t.txt").write_text("Gout\ngouts\n")
    done = hybridsum("terms", str(tmp_path / "a.jsonl"), "--lexicon", str(tmp_path / "t.txt"), "--out", str(tmp_path / "new.txt"), "--json")  # fmt: skip
    assert done.returncode == 0, done.stderr
    value = json.loads(done.stdout)
    assert value["terms"] == 1 and value["coverage"] == {"before": 18, "after": 18, "share": 1.0}
    assert value["files"][str(tmp_path / "a.jsonl")]["terms"][0] == {
        "term": "gout",
        "in_sources": 9,
        "in_summaries": 9,
        "summaries": 9,
    }
    assert "vagus nerve" in {candidate["term"] for candidate in value["candidates"]}
    assert "gout" in load(tmp_path / "new.txt").terms
