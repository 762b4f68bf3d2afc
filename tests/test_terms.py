"""The term lexicon: variants match, parts of words do not, and nothing overlaps."""

import pytest

from engine.corpus.terms import Lexicon, load
from engine.settings import ConfigError
from tests.conftest import PROJECT


def found(text: str, *terms: str) -> list[str]:
    return [text[span.start : span.end] for span in Lexicon(terms).spans(text)]


@pytest.mark.parametrize(
    "text", ["meta-analysis", "meta_analysis", "Meta  Analysis", "META\u2010ANALYSIS", "meta\u2013analysis"]
)
def test_joints_and_case_are_variants_of_one_term(text):
    assert found(f"a {text} of", "meta analysis") == [text]


def test_plurals_of_the_last_word_only():
    assert found("knee pains, knees pain, biopsies, biopsy", "knee pain", "biopsy") == [
        "knee pains",
        "biopsies",
        "biopsy",
    ]
    assert found("gus, flus, viruses, gas", "flu", "virus", "ga") == []  # too short, or ending in us
    assert found("crosses", "cross") == []


def test_words_are_whole():
    assert found("category cat scats", "cat") == ["cat"]
    assert found("type 20 diabetes", "type 2") == []


def test_the_longest_match_wins_and_nothing_overlaps():
    assert found("low back pain and back pain", "back pain", "low back pain", "pain") == ["low back pain", "back pain"]


def test_the_term_is_told_beside_its_place():
    (span,) = Lexicon(("gout", "knee pain")).spans("no Knee-Pain here")
    assert span == (3, 12, "knee pain")


def test_files_are_one_term_a_line_without_doubles(tmp_path):
    (tmp_path / "a.txt").write_text("# heading\n\nKnee-Pain\nknee pain\ngout\n")
    assert load(tmp_path / "a.txt").terms == ("knee pain", "gout")
    (tmp_path / "b.txt").write_text("# nothing\n")
    for name, words in (("b.txt", "no term in it"), ("none.txt", "no such file")):
        with pytest.raises(ConfigError, match=words):
            load(tmp_path / name)


def test_the_bundled_lexicon_covers_the_pocket_corpus():
    from engine.corpus.split import read_test

    lexicon = load(PROJECT / "data" / "pocket" / "terms.txt")
    for record in read_test(PROJECT / "data" / "pocket" / "test.jsonl"):
        assert not record.summary or {span.term for span in lexicon.spans(record.summary)}, record.id
