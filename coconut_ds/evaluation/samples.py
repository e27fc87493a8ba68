"""Scores of several samples of each problem: pass@k, coverage and majority vote, with intervals over problems.

* *pass@k* is the probability that at least one of k samples is right. Of n samples of a problem, c are right; then
  1 - C(n - c, k) / C(n, k), the share of all subsets of k samples with a right one, is an unbiased estimate (M. Chen
  et al., "Evaluating large language models trained on code", arXiv 2107.03374).
* *Coverage* is pass@n: the share of problems with at least one right sample (B. Brown et al., "Large language
  monkeys", arXiv 2407.21787).
* The *majority vote* is the answer of most samples (X. Wang et al., "Self-consistency improves chain of thought
  reasoning", arXiv 2203.11171). Answers that scoring takes for the same value are one answer. Samples in which it
  reads no answer do not vote; under ``choice``, a text without an option reads as C, and is a vote for it. Of answers
  with equally many votes, the one wins whose first sample has the lowest number. Samples are exchangeable, so this
  favours no answer.

All of them are computed for each problem and averaged over the problems that have an answer. The interval of such a
mean is ``statistics.mean_of``.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from math import comb
from typing import Any

from coconut_ds.evaluation.prediction import Prediction
from coconut_ds.evaluation.statistics import mean_of
from coconut_ds.scoring.base import Scoring


@dataclass(frozen=True)
class Vote:
    """The samples of one problem, and the answer that they vote for."""

    index: int
    """Index of the problem in its file, from 0."""
    question: str
    answer: str | None
    """The problem's answer; None if it has none that scoring can read."""
    extracted: str
    """The answer that wins the vote, as its first sample writes it; "" if there is no vote."""
    correct: bool | None
    """Whether it is right; None without an answer to compare with."""
    votes: int
    """Number of samples with this answer."""
    right: int | None
    """Number of samples whose answer is right; None without an answer to compare with."""
    samples: int
    """Number of samples."""

    def as_dict(self) -> dict[str, Any]:
        """The fields as plain values, ready for JSON."""
        return asdict(self)


def pass_at_k(samples: int, right: int, k: int) -> float:
    """The share of subsets of ``k`` samples that contain a right one, if ``right`` of ``samples`` are right."""
    assert 0 <= right <= samples, (right, samples)
    assert 1 <= k <= samples, (k, samples)
    subsets = comb(samples, k)
    # With integers, rounded once.
    return (subsets - comb(samples - right, k)) / subsets


def numbers_of_samples(samples: int) -> list[int]:
    """The values of k that are reported: 1, 2, 4, … and the number of samples itself."""
    return [*(2**power for power in range(samples.bit_length()) if 2**power < samples), samples]


def vote(samples: Sequence[Prediction], scoring: Scoring) -> Vote:
    """The vote of the samples of one problem, which are given in the order of their numbers."""
    voters: dict[str, list[Prediction]] = defaultdict(list)
    for one in samples:
        if one.extracted:
            voters[scoring.value(one.extracted)].append(one)
    first, is_judged = samples[0], samples[0].correct is not None
    # The first of the longest lists, and dictionaries keep the order in which keys were added.
    winners = max(voters.values(), key=len, default=[])
    return Vote(
        index=first.index,
        question=first.question,
        answer=first.answer,
        extracted=winners[0].extracted if winners else "",
        correct=bool(winners and winners[0].correct) if is_judged else None,
        votes=len(winners),
        right=sum(bool(one.correct) for one in samples) if is_judged else None,
        samples=len(samples),
    )


def by_problem(predictions: Sequence[Prediction]) -> list[list[Prediction]]:
    """The samples of each problem, both in the order of their numbers."""
    found: dict[int, list[Prediction]] = defaultdict(list)
    for one in sorted(predictions, key=lambda each: (each.index, each.sample or 0)):
        found[one.index].append(one)
    return list(found.values())


def votes_of(predictions: Sequence[Prediction], scoring: Scoring) -> list[Vote]:
    """The vote of each problem, in the order of the problems."""
    return [vote(samples, scoring) for samples in by_problem(predictions)]


def sample_scores(judged: Sequence[Prediction], scoring: Scoring) -> dict[str, Any]:
    """The content of ``scores.json`` about the samples of problems that have an answer; at least one.

    The vote of k samples is that of the k with the lowest numbers.
    """
    groups = by_problem(judged)
    number = len(groups[0])
    rights = [sum(bool(one.correct) for one in samples) for samples in groups]
    ks = numbers_of_samples(number)
    passed = {str(k): _share([pass_at_k(number, right, k) for right in rights]) for k in ks}
    voted = {str(k): _share([float(vote(samples[:k], scoring).correct or 0) for samples in groups]) for k in ks}
    return {"number": number, "pass_at": passed, "coverage": passed[str(number)], "majority_of": voted}


def _share(values: Sequence[float]) -> dict[str, Any]:
    mean = mean_of(values)
    return {"share": mean.estimate, "share_95": [mean.low, mean.high]}


def accuracy_of(predictions: Sequence[Prediction]) -> Mapping[str, Any]:
    """The mean accuracy over problems, and its interval at 95 %; the accuracy of a problem is that of its samples."""
    groups = by_problem(predictions)
    mean = mean_of([sum(bool(one.correct) for one in samples) / len(samples) for samples in groups])
    return {"accuracy": mean.estimate, "accuracy_95": [mean.low, mean.high]}
