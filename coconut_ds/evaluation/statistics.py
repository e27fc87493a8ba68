"""Uncertainty of shares of right answers: one model's, and the difference of two models on the same problems.

All treat the problems as drawn at random from many like them. None covers training: what another seed would have given
has to be measured with another seed.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy

HALVINGS = 60
"""Of an interval of length at most 2 this leaves less than the spacing of floats near 1."""
RESAMPLES = 2000
"""Of a bootstrap."""


@dataclass(frozen=True)
class Interval:
    """A confidence interval, both ends included."""

    low: float
    high: float


@dataclass(frozen=True)
class Mean:
    """A mean over problems, with its confidence interval."""

    estimate: float
    low: float
    high: float


@dataclass(frozen=True)
class AccuracyDifference:
    """Accuracy of the second minus accuracy of the first, from -1 to 1."""

    estimate: float
    interval: Interval


@dataclass(frozen=True)
class McNemar:
    """Outcome of McNemar's test."""

    only_first: int
    """Problems that only the first got right."""
    only_second: int
    """Problems that only the second got right."""
    p_value: float
    """Of the exact two-sided test."""


def wilson(successes: int, total: int, confidence: float = 0.95) -> Interval:
    """Score interval of a share: all shares that a test would not refuse after ``successes`` of ``total``.

    Never leaves [0, 1] and, unlike estimate ± z standard errors, has a width at 0 and at ``total`` successes too.
    E. B. Wilson, "Probable inference, the law of succession, and statistical inference", JASA 22 (1927), 209-212.

    Args:
        successes: 0 to ``total``.
        total: at least 1.
        confidence: between 0 and 1.
    """
    assert 0 <= successes <= total, f"{successes} of {total}"
    assert total > 0
    z = _quantile(confidence)
    share, spread = successes / total, z * z / total
    center = (share + spread / 2) / (1 + spread)
    half = z * math.sqrt(share * (1 - share) / total + spread / (4 * total)) / (1 + spread)
    # Rounding must not move the ends that are known exactly.
    low = 0.0 if successes == 0 else center - half
    high = 1.0 if successes == total else center + half
    return Interval(low, high)


def bootstrap(values: Sequence[float], confidence: float = 0.95, seed: int = 0) -> Interval:
    """Percentile interval of a mean: what means of as many problems, drawn anew from these, come to.

    B. Efron, "Bootstrap methods: another look at the jackknife", Annals of Statistics 7 (1979), 1-26. It is too narrow
    where problems are few, or nearly all values the same.

    Args:
        values: one a problem, at least one.
        confidence: between 0 and 1.
        seed: of the draws.
    """
    assert len(values) > 0
    array = numpy.asarray(values, dtype=float)
    draws = numpy.random.default_rng(seed).integers(len(array), size=(RESAMPLES, len(array)))
    tail = (1 - confidence) / 2
    low, high = numpy.quantile(array[draws].mean(axis=1), (tail, 1 - tail))
    return Interval(float(low), float(high))


def mean_of(values: Sequence[float], confidence: float = 0.95) -> Mean:
    """The mean of one value a problem: of yes and no (1 and 0) with Wilson's interval, else with the bootstrap's."""
    estimate = sum(values) / len(values)
    if all(value in (0, 1) for value in values):
        interval = wilson(round(sum(values)), len(values), confidence)
    else:
        interval = bootstrap(values, confidence)
    return Mean(estimate, interval.low, interval.high)


def mcnemar(first: Sequence[bool], second: Sequence[bool]) -> McNemar:
    """Exact two-sided test of whether two models are right equally often, from their answers to the same problems.

    Under the hypothesis each problem that just one of them got right is a fair coin; the p-value is twice the smaller
    tail of that binomial distribution, at most 1. Computed with integers, without rounding before the last division
    (0.0 only where it is below all floats).
    Q. McNemar, "Note on the sampling error of the difference between correlated proportions or percentages",
    Psychometrika 12 (1947), 153-157.

    Args:
        first: whether the first is right, problem by problem.
        second: the same problems in the same order.
    """
    only_first, only_second = _discordant(first, second)
    total, smaller = only_first + only_second, min(only_first, only_second)
    term = tail = 1
    for chosen in range(smaller):
        term = term * (total - chosen) // (chosen + 1)
        tail += term
    return McNemar(only_first, only_second, min(1.0, 2 * tail / 2**total))


def paired_difference(first: Sequence[bool], second: Sequence[bool], confidence: float = 0.95) -> AccuracyDifference:
    """Accuracy of the second minus that of the first on the same problems, with a score interval.

    The interval holds all differences that the score test for paired shares would not refuse. It is approximate, so for
    differences near its ends it can disagree with ``mcnemar``, which is exact and more cautious. Never leaves [-1, 1].
    T. Tango, "Equivalence test and confidence interval for the difference in proportions for the paired-sample design",
    Statistics in Medicine 17 (1998), 891-908; recommended by M. W. Fagerland, S. Lydersen, P. Laake, "Recommended tests
    and confidence intervals for paired binomial proportions", Statistics in Medicine 33 (2014), 2850-2875.

    Args:
        first: whether the first is right, problem by problem; at least one problem.
        second: the same problems in the same order.
        confidence: between 0 and 1.
    """
    assert len(first) > 0
    lost, won = _discordant(first, second)
    total, z = len(first), _quantile(confidence)

    def accepted(delta: float) -> bool:
        lost_share = _constrained_share(lost, won, total, delta)
        variance = total * (2 * lost_share + delta * (1 - delta))
        return (won - lost - total * delta) ** 2 <= z * z * variance

    estimate = (won - lost) / total
    return AccuracyDifference(estimate, Interval(_end(accepted, estimate, -1.0), _end(accepted, estimate, 1.0)))


def _discordant(first: Sequence[bool], second: Sequence[bool]) -> tuple[int, int]:
    """How many only the first got right, and only the second."""
    pairs = list(zip(first, second, strict=True))
    return sum(a and not b for a, b in pairs), sum(b and not a for a, b in pairs)


def _constrained_share(lost: int, won: int, total: int, delta: float) -> float:
    """Maximum likelihood estimate of the share that only the first gets right, if that of the second is delta more.

    The larger root of a quadratic.
    """
    a = 2 * total
    b = (2 * total - won + lost) * delta - won - lost
    c = -lost * delta * (1 - delta)
    return (math.sqrt(max(0.0, b * b - 4 * a * c)) - b) / (2 * a)


def _end(accepted: Callable[[float], bool], inside: float, outside: float) -> float:
    """The accepted value farthest from ``inside`` on the way to ``outside``, by halving."""
    for _ in range(HALVINGS):
        middle = (inside + outside) / 2
        if accepted(middle):
            inside = middle
        else:
            outside = middle
    return inside


def _quantile(confidence: float) -> float:
    """How many standard deviations from the mean hold ``confidence`` of a normal distribution."""
    assert 0 < confidence < 1, confidence
    return NormalDist().inv_cdf((1 + confidence) / 2)
