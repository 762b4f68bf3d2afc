"""Paired comparisons with the document as the unit. Imports scipy (0.5 s) and no torch.

Sources: paired approximate randomisation (Riezler & Maxwell 2005); BCa bootstrap (Efron 1987); Holm (1979); METHODS,
section 11.
"""

import math
import warnings
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np
from scipy.stats import DegenerateDataWarning, bootstrap, permutation_test

RESAMPLES = 9_999
CELLS = 4_000_000  # numbers drawn at once: 32 MB
ROUNDING = 1e-12  # relative: differences that agree so closely are equal
POWER = 2.8  # z(0.975) + z(0.8): two-sided 5 %, power 80 %
PASSED, FAILED, UNDECIDED = "passed", "failed", "not enough documents"


class Difference(NamedTuple):
    """Mean of paired differences; p two-sided; ci95 and the one-sided 95 % bounds; all in the unit of the input.

    effect: mean / standard deviation of the differences (Cohen's d_z), None where they are all equal.
    detectable: the smallest mean that n documents of this spread would show with 80 % power.
    """

    mean: float
    p: float
    ci95: tuple[float, float]
    lower: float
    upper: float
    n: int
    effect: float | None = None
    detectable: float = 0.0


def paired(differences: Sequence[float], seed: int = 0) -> Difference:
    """Test and intervals of the mean of n paired differences (n,).

    p by sign flips, (hits + 1) / (draws + 1), exact below 14 documents. BCa has no answer where all differences are
    equal: then the interval is the value itself, and p is 1 if it is 0. Where it has none for two or three documents,
    the interval is the percentile one. Raises ValueError for an empty input.
    """
    values = np.asarray(differences, dtype=float)
    if not len(values):
        raise ValueError("no documents to compare")
    mean = float(values.mean())
    if len(values) == 1 or np.ptp(values) <= ROUNDING * np.abs(values).max():
        p = 1.0 if mean == 0 else _sign_flip_p(values, seed)
        return Difference(mean, p, (mean, mean), mean, mean, len(values))
    ci95, bounds = _intervals(values, seed)
    spread = float(values.std(ddof=1))
    return Difference(
        mean, _sign_flip_p(values, seed), ci95, *bounds, len(values), mean / spread, detectable(spread, len(values))
    )


def detectable(spread: float, n: int) -> float:
    """The smallest true mean that is found with 80 % power at 5 % two-sided: 2.8 SD / sqrt(n)."""
    return POWER * spread / math.sqrt(n)


def _sign_flip_p(values: np.ndarray, seed: int) -> float:
    result = permutation_test(
        (values,),
        np.mean,
        permutation_type="samples",
        n_resamples=RESAMPLES,
        batch=_at_once(values),
        vectorized=True,
        rng=np.random.default_rng(seed),
    )
    return float(result.pvalue)


def _intervals(values: np.ndarray, seed: int) -> tuple[tuple[float, float], tuple[float, float]]:
    """(two-sided 95 %, two-sided 90 % = both one-sided 95 % bounds), of one bootstrap distribution."""
    common = {"method": "BCa", "batch": _at_once(values), "rng": np.random.default_rng(seed)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DegenerateDataWarning)  # answered below
        drawn = bootstrap((values,), np.mean, confidence_level=0.95, n_resamples=RESAMPLES, **common)
        again = bootstrap(
            (values,), np.mean, confidence_level=0.90, n_resamples=0, bootstrap_result=drawn, **common
        )  # the same draws
    return _bounds(drawn, 0.95), _bounds(again, 0.90)


def _bounds(result, level: float) -> tuple[float, float]:
    interval = result.confidence_interval
    if math.isnan(interval.low) or math.isnan(interval.high):
        tail = (1 - level) / 2
        return tuple(float(value) for value in np.quantile(result.bootstrap_distribution, [tail, 1 - tail]))
    return float(interval.low), float(interval.high)


def _at_once(values: np.ndarray) -> int:
    return max(1, min(RESAMPLES, CELLS // len(values)))


def holm(p: Sequence[float]) -> list[float]:
    """Adjusted p-values of one family: the chance of any false finding among them stays below the level (Holm 1979)."""
    given = np.asarray(p, dtype=float)
    order, m = np.argsort(given, kind="stable"), len(given)
    adjusted = np.maximum.accumulate(np.minimum(1, (m - np.arange(m)) * given[order]))
    found = np.empty(m)
    found[order] = adjusted
    return found.tolist()


def two_level(differences: Mapping[str, Sequence[float]], seed: int = 0, draws: int = RESAMPLES) -> Difference:
    """The mean over several training seeds: {seed's name: differences of the same n documents in the same order}.

    Each draw takes seeds with replacement, then documents with replacement, the same ones for all seeds drawn, since
    every seed is judged on the same documents. Percentile intervals; p = 2 x the smaller tail, (hits + 1) / (draws + 1).
    The spread over seeds is in it, so with two or three seeds an interval is honestly wide. Raises ValueError for fewer
    than two seeds or unequal lengths.
    """
    table = [np.asarray(values, dtype=float) for values in differences.values()]
    if len(table) < 2 or len({len(values) for values in table}) > 1 or not len(table[0]):
        raise ValueError("two or more seeds, each judged on the same documents, are needed")
    values = np.stack(table)  # (seeds, documents)
    chance, (seeds, n) = np.random.default_rng(seed), values.shape
    means = np.empty(draws)
    for k in range(draws):
        weights = np.bincount(chance.integers(0, seeds, seeds), minlength=seeds) @ values  # (documents,)
        means[k] = weights[chance.integers(0, n, n)].mean() / seeds
    tail = min((means <= 0).sum(), (means >= 0).sum())
    low, lower, upper, high = np.quantile(means, [0.025, 0.05, 0.95, 0.975])
    spread = float(values.mean(0).std(ddof=1)) if n > 1 else 0.0
    mean, deviation = float(values.mean()), float(means.std(ddof=1))
    return Difference(
        mean,
        float(min(1.0, 2 * (tail + 1) / (draws + 1))),
        (float(low), float(high)),
        float(lower),
        float(upper),
        n,
        mean / spread if spread else None,
        POWER * deviation,
    )


def by_group(differences: Sequence[float], groups: Sequence[str]) -> list[float]:
    """One value for each group (all segments of a recording), scaled so that their mean is that of the documents."""
    sums: dict[str, float] = {}
    for value, group in zip(differences, groups, strict=True):
        sums[group] = sums.get(group, 0.0) + value
    return [value * len(sums) / len(differences) for value in sums.values()]


def non_inferior(difference: Difference, margin: float) -> Literal["passed", "failed", "not enough documents"]:
    """The gate: margin <= 0 is the change still accepted. Passed if the one-sided 95 % lower bound lies above it,
    failed if the upper bound lies below it, else there are not enough documents to tell."""
    if difference.lower > margin:
        return PASSED
    if difference.upper < margin:
        return FAILED
    return UNDECIDED
