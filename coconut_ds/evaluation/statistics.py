"""Confidence intervals and tests for accuracies: of one model, and for two models on the same problems.

All of them treat the problems as a random sample from a large population of similar problems. None of them covers the
variation between training runs: that requires training with other seeds.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import NormalDist, fmean, stdev

import numpy

HALVINGS = 60
"""Number of bisection steps: they shrink an interval of length 2 to less than the spacing of floats near 1."""
RESAMPLES = 2000
"""Number of resamples of a bootstrap."""
DRAWN_AT_ONCE = 1 << 20
"""Number of values that a bootstrap draws at a time, which limits its memory."""


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
    """Result of McNemar's test."""

    only_first: int
    """Number of problems that only the first model got right."""
    only_second: int
    """Number of problems that only the second model got right."""
    p_value: float
    """p-value of the exact two-sided test."""


def wilson(successes: int, total: int, confidence: float = 0.95) -> Interval:
    """Wilson's score interval of a share: all shares that the score test does not reject, given the counts.

    The interval never leaves [0, 1] and, unlike estimate ± z standard errors, has a positive width at 0 and at
    ``total`` successes too.
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
    # These two ends are known exactly; rounding errors must not move them.
    low = 0.0 if successes == 0 else center - half
    high = 1.0 if successes == total else center + half
    return Interval(low, high)


def bootstrap(values: Sequence[float], confidence: float = 0.95, seed: int = 0) -> Interval:
    """Percentile bootstrap interval of a mean: quantiles of the means of ``RESAMPLES`` resamples of the values.

    B. Efron, "Bootstrap methods: another look at the jackknife", Annals of Statistics 7 (1979), 1-26. The interval is
    too narrow if there are few problems, or if nearly all values are equal.

    Args:
        values: one value per problem, at least one.
        confidence: between 0 and 1.
        seed: seed of the resampling.
    """
    assert len(values) > 0
    array = numpy.asarray(values, dtype=float)
    generator, count = numpy.random.default_rng(seed), len(array)
    means: list[float] = []
    while len(means) < RESAMPLES:
        rows = min(RESAMPLES - len(means), max(1, DRAWN_AT_ONCE // count))
        means += array[generator.integers(count, size=(rows, count))].mean(axis=1).tolist()
    tail = (1 - confidence) / 2
    low, high = numpy.quantile(means, (tail, 1 - tail))
    return Interval(float(low), float(high))


def mean_of(values: Sequence[float], confidence: float = 0.95) -> Mean:
    """The mean of one value per problem, with a Wilson interval if all values are 0 or 1, else a bootstrap interval."""
    estimate = sum(values) / len(values)
    if all(value in (0, 1) for value in values):
        interval = wilson(round(sum(values)), len(values), confidence)
    else:
        interval = bootstrap(values, confidence)
    return Mean(estimate, interval.low, interval.high)


def mcnemar(first: Sequence[bool], second: Sequence[bool]) -> McNemar:
    """Exact two-sided test of whether two models are right equally often, from their answers to the same problems.

    Under the null hypothesis, each problem that exactly one of the models got right is a fair coin toss; the p-value is
    twice the smaller tail of that binomial distribution, at most 1. It is computed with integers, without rounding
    before the last division (it is 0.0 only if it is smaller than every positive float).
    Q. McNemar, "Note on the sampling error of the difference between correlated proportions or percentages",
    Psychometrika 12 (1947), 153-157.

    Args:
        first: for each problem, whether the first model is right.
        second: the same for the second model, with the problems in the same order.
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

    The interval contains all differences that the score test for paired shares does not reject, and never leaves
    [-1, 1]. It is approximate, so near its ends it can disagree with ``mcnemar``, which is exact and more conservative.
    T. Tango, "Equivalence test and confidence interval for the difference in proportions for the paired-sample design",
    Statistics in Medicine 17 (1998), 891-908; recommended by M. W. Fagerland, S. Lydersen, P. Laake, "Recommended tests
    and confidence intervals for paired binomial proportions", Statistics in Medicine 33 (2014), 2850-2875.

    Args:
        first: for each problem, whether the first model is right; at least one problem.
        second: the same for the second model, with the problems in the same order.
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
    return AccuracyDifference(estimate, Interval(_bisect(accepted, estimate, -1.0), _bisect(accepted, estimate, 1.0)))


def paired_t(first: Sequence[float], second: Sequence[float]) -> float:
    """p-value of the two-sided paired t test: whether the mean of the differences could be 0.

    Student, "The probable error of a mean", Biometrika 6 (1908), 1-25. It assumes that the differences are roughly
    normal, which a few values cannot show. If all differences are equal, the p-value is 1 for a difference of 0 and 0
    for any other.

    Args:
        first: values of one model, for example its accuracy with each seed; at least two.
        second: values of another one, in the same order.
    """
    # Imported here, since it takes a quarter of a second to load.
    from scipy.special import stdtr

    differences = [b - a for a, b in zip(first, second, strict=True)]
    assert len(differences) > 1
    mean, spread = fmean(differences), stdev(differences)
    if spread == 0:
        return float(mean == 0)
    return float(2 * stdtr(len(differences) - 1, -abs(mean) / (spread / math.sqrt(len(differences)))))


def _discordant(first: Sequence[bool], second: Sequence[bool]) -> tuple[int, int]:
    """Number of problems that only the first got right, and number that only the second got right."""
    pairs = list(zip(first, second, strict=True))
    return sum(a and not b for a, b in pairs), sum(b and not a for a, b in pairs)


def _constrained_share(lost: int, won: int, total: int, delta: float) -> float:
    """Maximum likelihood estimate of the share that only the first gets right, given the difference ``delta``.

    The constraint is that the share that only the second gets right is larger by ``delta``. The estimate is the larger
    root of a quadratic equation.
    """
    a = 2 * total
    b = (2 * total - won + lost) * delta - won - lost
    c = -lost * delta * (1 - delta)
    return (math.sqrt(max(0.0, b * b - 4 * a * c)) - b) / (2 * a)


def _bisect(accepted: Callable[[float], bool], inside: float, outside: float) -> float:
    """Bisection: the accepted value that is farthest from ``inside`` in the direction of ``outside``."""
    for _ in range(HALVINGS):
        middle = (inside + outside) / 2
        if accepted(middle):
            inside = middle
        else:
            outside = middle
    return inside


def _quantile(confidence: float) -> float:
    """The z for which a normal distribution has probability ``confidence`` within z standard deviations of its mean."""
    assert 0 < confidence < 1, confidence
    return NormalDist().inv_cdf((1 + confidence) / 2)
