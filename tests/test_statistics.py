"""Intervals and tests of shares: against the equations that define them, enumeration, and published examples."""

import itertools
import math
import random
from fractions import Fraction

import numpy
import pytest

from coconut_ds.evaluation.statistics import Interval, bootstrap, mcnemar, mean_of, paired_difference, wilson

Z_95 = 1.959963984540054


def answers(both: int, only_first: int, only_second: int, neither: int) -> tuple[list[bool], list[bool]]:
    """Which problems two models got right, in a random order with these counts."""
    pairs = [(True, True)] * both + [(True, False)] * only_first + [(False, True)] * only_second
    pairs += [(False, False)] * neither
    random.Random(0).shuffle(pairs)
    return [first for first, _ in pairs], [second for _, second in pairs]


def tango(only_first: int, only_second: int, total: int, confidence: float = 0.95) -> Interval:
    rest = total - only_first - only_second
    return paired_difference(*answers(rest // 2, only_first, only_second, rest - rest // 2), confidence).interval


@pytest.mark.parametrize(
    ("successes", "total", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_gives_the_published_intervals(successes, total, low, high):
    """R. G. Newcombe, Statistics in Medicine 17 (1998), 857-872, table I, method 3."""
    interval = wilson(successes, total)
    assert (round(interval.low, 4), round(interval.high, 4)) == (low, high)


def test_at_wilsons_ends_the_estimate_is_z_standard_errors_away():
    for total in (1, 2, 7, 500):
        for successes in {0, 1, total // 3, total - 1, total}:
            interval = wilson(successes, total)
            assert 0 <= interval.low <= successes / total <= interval.high <= 1
            for end in (interval.low, interval.high):
                if 0 < end < 1:
                    error = math.sqrt(end * (1 - end) / total)
                    assert abs(successes / total - end) / error == pytest.approx(Z_95, rel=1e-9)
    assert {wilson(0, total).low for total in range(1, 300)} == {0.0}
    assert {wilson(total, total).high for total in range(1, 300)} == {1.0}


def test_wilson_covers_the_truth_about_as_often_as_it_says():
    """Probability that the interval contains the true share, with all outcomes enumerated; the mean over shares."""
    total = 25
    for confidence in (0.8, 0.95):
        intervals = [wilson(successes, total, confidence) for successes in range(total + 1)]
        covered = []
        for truth in (i / 200 for i in range(1, 200)):
            chances = (math.comb(total, k) * truth**k * (1 - truth) ** (total - k) for k in range(total + 1))
            covered.append(sum(c for c, i in zip(chances, intervals, strict=True) if i.low <= truth <= i.high))
        assert sum(covered) / len(covered) == pytest.approx(confidence, abs=0.012)
        assert min(covered) > confidence - 0.13


def test_mcnemar_is_the_share_of_coin_flips_at_least_as_unlikely():
    for total in range(11):
        flips = [sum(each) for each in itertools.product((0, 1), repeat=total)]
        for heads in range(total + 1):
            chance = {k: Fraction(flips.count(k), len(flips)) for k in set(flips)}
            expected = sum(share for share in chance.values() if share <= chance[heads])
            found = mcnemar(*answers(3, heads, total - heads, 2))
            assert (found.only_first, found.only_second) == (heads, total - heads)
            assert found.p_value == float(expected)


@pytest.mark.parametrize(
    ("counts", "p_value", "estimate", "low", "high"),
    [((1, 1, 7, 12), 0.0703, 0.2857, 0.0260, 0.5172), ((59, 6, 16, 80), 0.0525, 0.0621, 0.0054, 0.1240)],
)
def test_published_paired_examples(counts, p_value, estimate, low, high):
    """Bentur 2009 and Cavo 2012 in Fagerland, Lydersen, Laake (2014); they subtract the other way round."""
    first, second = answers(*counts)
    found = paired_difference(first, second)
    shown = mcnemar(first, second).p_value, found.estimate, found.interval.low, found.interval.high
    assert [round(value, 4) for value in shown] == [p_value, estimate, low, high]
    swapped = paired_difference(second, first)
    assert swapped.estimate == -found.estimate
    assert (-swapped.interval.high, -swapped.interval.low) == pytest.approx((low, high), abs=1e-4)


def test_ten_thousand_disagreements_neither_overflow_nor_round():
    """Against logarithms of factorials, against fractions where those are fast, and where the result underflows."""
    logs = (math.lgamma(10_001) - math.lgamma(k + 1) - math.lgamma(10_001 - k) for k in range(4_851))
    tail = math.fsum(math.exp(log - 10_000 * math.log(2)) for log in logs)
    assert mcnemar(*answers(0, 4_850, 5_150, 0)).p_value == pytest.approx(2 * tail, rel=1e-9)
    exact = Fraction(2 * sum(math.comb(1_500, k) for k in range(701)), 2**1_500)
    assert mcnemar(*answers(0, 800, 700, 0)).p_value == float(exact)
    assert mcnemar([True] * 1_000, [False] * 1_000).p_value == math.ldexp(1.0, -999)
    assert mcnemar([True] * 10_000, [False] * 10_000).p_value == 0.0


def likelihood(q: float, delta: float, only_first: int, only_second: int, total: int) -> float:
    """Log-likelihood of the shares: only first q, only second q + delta, the rest."""
    counts = ((only_first, q), (only_second, q + delta), (total - only_first - only_second, 1 - 2 * q - delta))
    return sum(n * math.log(max(p, 1e-300)) for n, p in counts if n)


def most_likely(delta: float, *counts: int) -> float:
    """By ternary search: the log-likelihood is concave."""
    low, high = max(0.0, -delta), (1 - delta) / 2
    for _ in range(200):
        a, b = low + (high - low) / 3, high - (high - low) / 3
        low, high = (a, high) if likelihood(a, delta, *counts) < likelihood(b, delta, *counts) else (low, b)
    return (low + high) / 2


@pytest.mark.parametrize("counts", [(0, 0, 10), (0, 1, 44), (3, 0, 7), (6, 16, 161), (250, 240, 500), (4, 5, 9)])
def test_at_tangos_ends_the_score_statistic_is_z(counts):
    lost, won, total = counts
    interval = tango(*counts)
    assert -1 <= interval.low < (won - lost) / total < interval.high <= 1
    for end in (interval.low, interval.high):
        q = most_likely(end, *counts)
        error = math.sqrt((2 * q + end - end**2) / total)
        assert abs((won - lost) / total - end) / error == pytest.approx(Z_95, rel=1e-4)


def test_tango_covers_the_truth_about_as_often_as_it_says():
    """All outcomes of 20 problems enumerated, for several pairs of shares."""
    total = 20
    counts = [(b, c) for b in range(total + 1) for c in range(total + 1 - b)]
    ways = {(b, c): math.comb(total, b) * math.comb(total - b, c) for b, c in counts}
    intervals = {(b, c): tango(b, c, total) for b, c in counts}
    covered = []
    for p, q in [(0.05, 0.1), (0.1, 0.1), (0.2, 0.4), (0.3, 0.3), (0.1, 0.6), (0.02, 0.3), (0.5, 0.4), (0.25, 0.15)]:
        chances = {(b, c): n * p**b * q**c * (1 - p - q) ** (total - b - c) for (b, c), n in ways.items()}
        covered.append(sum(n for pair, n in chances.items() if intervals[pair].low <= q - p <= intervals[pair].high))
    assert sum(covered) / len(covered) == pytest.approx(0.95, abs=0.012)
    assert min(covered) > 0.92


def test_intervals_at_the_edges():
    assert tango(5, 0, 5).low == -1
    assert tango(0, 5, 5).high == 1
    assert tango(0, 5, 5).low < 1
    # No difference in n problems: z^2 / (n + z^2), as for a share of zero.
    assert tango(0, 0, 40).high == pytest.approx(Z_95**2 / (40 + Z_95**2), rel=1e-9)
    assert tango(0, 0, 40).high == pytest.approx(wilson(0, 40).high, rel=1e-9)
    narrow, wide = tango(6, 16, 161, 0.8), tango(6, 16, 161, 0.99)
    assert wide.low < narrow.low < narrow.high < wide.high
    assert wilson(3, 9, 0.5).low > wilson(3, 9).low


def test_different_numbers_of_answers_are_no_pairs():
    with pytest.raises(ValueError, match="zip"):
        mcnemar([True, False], [True])
    with pytest.raises(ValueError, match="zip"):
        paired_difference([True, False], [True])


def test_bootstrap_intervals_are_those_of_resampled_means():
    rng = random.Random(0)
    values = [rng.gauss(3.0, 2.0) for _ in range(400)]
    interval = bootstrap(values)
    draws = sorted(sum(rng.choices(values, k=400)) / 400 for _ in range(2000))
    # The ends of 2,000 resampled means vary by about 0.007 between runs.
    assert interval.low == pytest.approx(draws[50], abs=0.03)
    assert interval.high == pytest.approx(draws[1949], abs=0.03)
    half = 1.96 * float(numpy.std(values)) / math.sqrt(400)
    assert (interval.high - interval.low) / 2 == pytest.approx(half, rel=0.1)
    assert bootstrap(values) == interval
    shares = mean_of([1.0, 0.0, 1.0, 1.0])
    expected = wilson(3, 4)
    assert (shares.estimate, shares.low, shares.high) == (0.75, expected.low, expected.high)
    assert mean_of([0.5, 1.0]).estimate == 0.75
