"""Labels for linear probes: what a thought may encode, taken from the steps and the answer of each problem."""

from collections.abc import Sequence

from coconut_ds.data.graph_answers import is_graph_problem
from coconut_ds.data.problem import Problem


def labels_of(problems: Sequence[Problem]) -> dict[str, list[str]]:
    """The labels by name, each with one value per problem: every step that all problems have, and the answer.

    The answer is left out if it equals the same step in every problem. On graph problems, the value of a step is the
    node that it leads to, so that probes distinguish nodes rather than sentences.
    """
    labels: dict[str, list[str]] = {}
    for index in range(min((len(problem.steps) for problem in problems), default=0)):
        labels[f"step {index + 1}"] = [_value(problem, problem.steps[index]) for problem in problems]
    answers = [_value(problem, problem.answer) for problem in problems]
    if answers not in labels.values():
        labels["answer"] = answers
    return labels


def _value(problem: Problem, text: str) -> str:
    return text.split()[-1].rstrip(".") if is_graph_problem(problem) and text.split() else text
