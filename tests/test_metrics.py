"""Every metric against a case worked out by hand, and their means."""

import numpy as np
import pytest

from engine.corpus.terms import Lexicon
from engine.evaluation import metrics
from engine.evaluation.gap import modality_gap
from engine.evaluation.sentences import INSTALLED, TRAINED, model_name, splitter
from engine.evaluation.table import METRICS, columns_in_order

LEXICON = Lexicon(("blood pressure", "metformin", "asthma"))
SOURCE = "metformin lowers blood pressure in adults with asthma and in children too"


def by_lines(text: str) -> list[str]:
    return text.split("|")


def scored(reference: str, output: str, source: str | None = SOURCE) -> dict:
    return metrics.score(reference, output, source, by_lines, LEXICON)


# metric: (reference, output, value)
CASES = {
    "rouge1": ("the cat sat on the mat", "the cat lay on a mat", 4 / 6),  # the, cat, on, mat: P = R = 4/6
    "rouge2": ("the cat sat on the mat", "the cat lay on a mat", 1 / 5),  # the cat
    "rougeL": ("the cat sat on the mat", "the cat lay on a mat", 4 / 6),
    "rougeLsum": ("a b c d e|f g h i j", "f g h i j|a b c d e", 1.0),  # the sentences only change places
    "term_recall": ("metformin and asthma", "Metformin works", 1 / 2),
    "term_precision": ("metformin alone", "blood-pressure and metformin", 1 / 2),
    "term_support": ("x", "asthma, blood pressure", 1.0),
    "length_ratio": ("one two three four", "one two", 0.5),
    "empty": ("x", " \n", 1.0),
    "unique_tokens": ("x", "no no no yes", 2 / 4),
    "repetition": ("x", "a b c a b c", 1 - 3 / 4),  # abc bca cab abc
    "novelty": ("x", "metformin lowers blood sugar", 1 / 3),  # blood sugar
    "copy": ("x", "metformin lowers blood pressure in mice", 2 / 3),  # the last 4-gram ends in mice
}
FROM_MODELS = {"nll", "bertscore_f1", "bertscore_precision", "bertscore_recall", "bertscore_composite"}


def test_every_metric_has_a_case_and_a_row_in_the_table():
    assert set(CASES) == set(scored("x", "y")) == set(METRICS) - FROM_MODELS


@pytest.mark.parametrize("name", CASES)
def test_by_hand(name):
    reference, output, value = CASES[name]
    assert scored(reference, output)[name] == pytest.approx(value)


def test_the_order_of_sentences_counts_for_rouge_l_alone():
    swapped = scored("a b c d e|f g h i j", "f g h i j|a b c d e")
    assert swapped["rougeL"] == pytest.approx(0.5) and swapped["rougeLsum"] == 1.0


def test_rouge_is_stemmed_and_an_empty_output_scores_zero():
    assert scored("studies", "study")["rouge1"] == 1.0
    assert all(scored("x", " ")[name] == 0.0 for name in metrics.ROUGE)


def test_what_is_undefined_is_none_and_left_out_of_the_mean():
    empty = scored("no term here", "", source=None)
    undefined = ("term_recall", "term_precision", "term_support", "unique_tokens", "repetition", "novelty", "copy")
    assert [name for name, value in empty.items() if value is None] == [n for n in empty if n in undefined]
    rows = [
        {"scores": scored("metformin", "metformin"), "summary_tokens": 1, "output": "metformin"},
        {"scores": scored("nothing", "metformin"), "summary_tokens": 1, "output": "metformin"},
    ]
    means = metrics.summarise(rows)
    assert (means["term_recall"], means["term_recall_n"], means["n"]) == (100.0, 1, 2)
    assert means["copy"] is None and means["copy_n"] == 0  # too few words in both
    assert "term_precision_n" not in means


def test_means_of_a_column_by_hand():
    rows = [
        {"scores": {"rougeL": 0.2, "nll": 1.0, "length_ratio": 0.5}, "summary_tokens": 1, "output": "a b"},
        {"scores": {"rougeL": 0.0, "nll": 3.0, "length_ratio": 1.5}, "summary_tokens": 3, "output": "a b c d"},
        {"scores": {"rougeL": 0.4, "nll": 2.0, "length_ratio": 0.7}, "summary_tokens": 4, "output": "a b"},
    ]
    means = metrics.summarise(rows)
    assert means["rougeL"] == pytest.approx(20) and means["nll"] == pytest.approx(18 / 8)
    assert means["length_ratio"] == pytest.approx(0.9) and means["length_ratio_median"] == 0.7
    assert means["unique_summaries"] == pytest.approx(200 / 3) and means["n"] == 3
    assert means["length_spread"] == pytest.approx((8 / 9) ** 0.5)  # 2, 4, 2 words


def test_the_composite_by_hand():
    assert metrics.composite(0.8, 0.5) == metrics.composite(0.8, 2.0) == pytest.approx(0.8 * 0.933, abs=1e-4)
    assert metrics.composite(0.8, 0.0) == 0.0 and metrics.composite(0.8, 1.0) == 0.8


def test_sentences_without_a_download():
    split, name = splitter(["Dr. Smith saw it. Dr. Jones did not. It was seen by Dr. Hall, too. He left early."] * 50)
    assert name == model_name() and name in (INSTALLED, TRAINED)
    assert split("The knee was bent. It\nheld.") == ["The knee was bent.", "It held."]


def test_columns_in_order():
    assert columns_in_order({"general", "videos", "qa", "papers"}) == ["papers", "videos", "qa", "general"]


def test_modality_gap_by_hand():
    x, y = np.array([[2.0, 0], [3, 0]]), np.array([[0, 1.0], [0, 5]])
    found = modality_gap(x, y, [(0, 0)])
    assert found == {"gap": pytest.approx(2**0.5), "probe": 1.0, "recall_at_1": 1.0}  # a tie goes to the first
    turned = modality_gap(np.array([[1.0, 0.1], [0.1, 1]]), np.array([[1.0, 0], [0, 1]]), [(0, 0), (1, 1)])
    assert turned["gap"] == pytest.approx(0.05, abs=0.06) and turned["recall_at_1"] == 1.0 and turned["probe"] < 0.5
    assert modality_gap(x, y)["recall_at_1"] is None
