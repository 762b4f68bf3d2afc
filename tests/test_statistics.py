"""Statistics against scipy called directly, exact cases, and what a planted truth should give."""

import numpy as np
import pytest
from scipy.stats import bootstrap, permutation_test

from engine.evaluation import statistics
from engine.evaluation.statistics import (
    FAILED,
    PASSED,
    UNDECIDED,
    by_group,
    detectable,
    holm,
    non_inferior,
    paired,
    two_level,
)


@pytest.mark.parametrize("count", [50, 1000])  # the second is drawn in several batches
def test_intervals_and_p_are_scipy_s(count):
    values = np.random.default_rng(4).normal(0.03, 1, count)
    found = paired(values, seed=7)
    for level, ours in ((0.95, found.ci95), (0.90, (found.lower, found.upper))):
        direct = bootstrap(
            (values,), np.mean, method="BCa", confidence_level=level, n_resamples=9999, rng=np.random.default_rng(7)
        ).confidence_interval
        assert ours == pytest.approx((direct.low, direct.high), abs=1e-9)
    p = permutation_test(
        (values,), np.mean, permutation_type="samples", n_resamples=9999, vectorized=True, rng=np.random.default_rng(7)
    ).pvalue
    assert found.p == pytest.approx(p, abs=1e-9)
    assert found.ci95[0] < found.lower < found.mean < found.upper < found.ci95[1]


def test_drawing_in_batches_changes_nothing(monkeypatch):
    values = np.random.default_rng(1).normal(0.1, 1, 30)
    whole = paired(values)
    monkeypatch.setattr(statistics, "CELLS", 1000)
    assert paired(values) == whole


def test_exact_sign_flips_of_four():
    assert paired([1, 2, 3, 4]).p == pytest.approx(0.125)  # 2 of 16


def test_equal_differences_have_an_interval_too():
    assert paired([0.0] * 5)[:3] == (0.0, 1.0, (0.0, 0.0))
    assert paired([2.0] * 5).ci95 == (2.0, 2.0) and paired([2.0] * 5).effect is None
    noisy = [-4 + 1e-15, -4, -4 - 1e-15] * 10
    assert paired(noisy).ci95 == pytest.approx((-4, -4)) and paired(noisy).lower == pytest.approx(-4)
    assert paired([1.0, 3.0]).ci95 == (1.0, 3.0)  # two documents: BCa gives nan
    with pytest.raises(ValueError, match="no documents"):
        paired([])


def test_effect_and_detectable_difference_by_hand():
    found = paired([1, 2, 3, 4])
    assert found.effect == pytest.approx(2.5 / (5 / 3) ** 0.5)
    assert found.detectable == pytest.approx(2.8 * (5 / 3) ** 0.5 / 2)
    assert detectable(10, 200) == pytest.approx(1.98, abs=0.01)  # METHODS, section 11


def test_what_is_detectable_is_found_four_times_out_of_five():
    chance, n = np.random.default_rng(0), 60
    effect = detectable(1.0, n)
    found = [abs(x.mean()) > 1.96 * x.std(ddof=1) / n**0.5 for x in chance.normal(effect, 1, (2000, n))]
    assert np.mean(found) == pytest.approx(0.8, abs=0.03)


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.9]) == [1.0, 1.0] and holm([]) == []


def test_ten_documents_with_a_large_spread_decide_nothing():
    values = np.random.default_rng(1).normal(0, 9, 10)
    assert non_inferior(paired(values - values.mean()), -1.0) == UNDECIDED


def test_the_gate_says_passed_failed_or_too_few():
    values = np.random.default_rng(2).normal(0, 1, 400)
    assert non_inferior(paired(values), -1.0) == PASSED
    assert non_inferior(paired(values - 5), -1.0) == FAILED
    assert non_inferior(paired(values - values.mean() - 1), -1.0) == UNDECIDED  # right on the margin


def test_groups_keep_the_mean_and_count_once():
    values = by_group([1.0, 2.0, 3.0, 6.0], ["a", "a", "a", "b"])
    assert values == [3.0, 3.0] and np.mean(values) == np.mean([1, 2, 3, 6])


def test_two_level_bootstrap_knows_both_spreads():
    """Against its analytic spread, var = between / seeds + within / documents, where documents hardly vary or seeds do not."""
    chance = np.random.default_rng(3)
    documents = chance.normal(1, 2, 100)
    same = two_level({str(k): documents for k in range(3)}, draws=4000)
    plain = paired(documents)
    assert same.ci95 == pytest.approx(plain.ci95, abs=0.1)  # equal seeds add nothing
    shifts = {str(k): np.full(50, float(k)) for k in range(5)}  # equal documents: only seeds vary, 0 1 2 3 4
    found = two_level(shifts, draws=4000)
    assert found.mean == 2.0
    half = 1.96 * (2.0 / 5) ** 0.5  # variance of 0..4 is 2
    assert found.ci95 == pytest.approx((2 - half, 2 + half), abs=0.2)
    assert two_level({"0": [5.0] * 9, "1": [6.0] * 9}, draws=99).p == pytest.approx(2 / 100)


def test_two_level_bootstrap_needs_two_seeds_and_the_same_documents():
    for wrong in ({"0": [1.0]}, {"0": [1.0], "1": [1.0, 2.0]}, {"0": [], "1": []}):
        with pytest.raises(ValueError, match="two or more seeds"):
            two_level(wrong)
