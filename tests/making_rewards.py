"""Rewards that tests name in objective.grpo.reward."""

import math
import os

from coconut_ds.data.problem import Problem


def brevity(problem: Problem, text: str) -> float:
    """More for shorter texts, and a little for those that repeat a word of the question."""
    return -len(text) + 0.5 * any(word in problem.question.split() for word in text.split())


def constant(problem: Problem, text: str) -> float:
    """The same for all texts."""
    return 1.0


def raises(problem: Problem, text: str) -> float:
    """A mistake of a user."""
    raise KeyError("edges")


def raises_later(problem: Problem, text: str) -> float:
    """Like ``brevity``, but fails after a number of calls that an environment variable states."""
    left = int(os.environ["FAILING_REWARD_CALLS"]) - 1
    os.environ["FAILING_REWARD_CALLS"] = str(left)
    return brevity(problem, text) / bool(left >= 0)


def not_a_number(problem: Problem, text: str) -> float:
    """0 / 0."""
    return math.nan


def text(problem: Problem, text: str) -> str:
    """A number as text."""
    return "1.0"


NOT_CALLABLE = 3
