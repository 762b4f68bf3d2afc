"""Paired comparisons with the document as the unit. Imports scipy (0.5 s) and no torch.

Sources: paired approximate randomisation (Riezler & Maxwell 2005); BCa bootstrap (Efron 1987); METHODS, section 11.
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
from scipy.stats import bootstrap, permutation_test

RESAMPLES = 9_999
PASSED, FAILED, UNDECIDED = "passed", "failed", "not enough documents"


class Difference(NamedTuple):
    """Mean of paired differences; p two-sided; ci95 and the one-sided 95 % bounds; all in the unit of the input."""

    mean: float
    p: float
    ci95: tuple[float, float]
    lower: float
    upper: float
    n: int


def paired(differences: Sequence[float], seed: int = 0) -> Difference:
    """Test and intervals of the mean of n paired differences (n,).

    p by sign flips, (hits + 1) / (draws + 1). BCa has no answer where all differences are equal: then the interval is
    the value itself, and p is 1 if it is 0. Raises ValueError for an empty input.
    """
    values = np.asarray(differences, dtype=float)
    if not len(values):
        raise ValueError("no documents to compare")
    mean = float(values.mean())
    if len(values) == 1 or np.ptp(values) == 0:
        p = 1.0 if mean == 0 else _sign_flip_p(values, seed)
        return Difference(mean, p, (mean, mean), mean, mean, len(values))
    ci95 = _interval(values, 0.95, seed)
    lower, upper = _interval(values, 0.90, seed)
    return Difference(mean, _sign_flip_p(values, seed), ci95, lower, upper, len(values))


def _sign_flip_p(values: np.ndarray, seed: int) -> float:
    result = permutation_test(
        (values,),
        np.mean,
        permutation_type="samples",
        n_resamples=RESAMPLES,
        vectorized=True,
        rng=np.random.default_rng(seed),
    )
    return float(result.pvalue)


def _interval(values: np.ndarray, level: float, seed: int) -> tuple[float, float]:
    result = bootstrap(
        (values,), np.mean, confidence_level=level, n_resamples=RESAMPLES, method="BCa", rng=np.random.default_rng(seed)
    )
    return float(result.confidence_interval.low), float(result.confidence_interval.high)


def non_inferior(difference: Difference, margin: float) -> Literal["passed", "failed", "not enough documents"]:
    """The gate: margin <= 0 is the change still accepted. Passed if the one-sided 95 % lower bound lies above it,
    failed if the upper bound lies below it, else there are not enough documents to tell."""
    if difference.lower > margin:
        return PASSED
    if difference.upper < margin:
        return FAILED
    return UNDECIDED
