"""What could stand in a thought: labels that a data set gives for each of its problems."""

from collections.abc import Sequence

from coconut_ds.data.graph_answers import is_graph_problem
from coconut_ds.data.problem import Problem


def labels_of(problems: Sequence[Problem]) -> dict[str, list[str]]:
    """Names of labels with one value a problem: each step that all problems have, and the answer.

    On graph problems a step stands for the node that it leads to, so that nodes are told apart, not sentences.
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
