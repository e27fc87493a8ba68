"""Classifies generated solutions of graph problems (ProsQA's format) by the path or label that they contain.

The six categories are those of Coconut's analysis (Hao et al. 2024, arXiv:2412.06769, section 5.1); every text belongs
to exactly one. Also scores the two shortcuts of `graph_stats` on a single problem. The graph is taken from
``Problem.extra``, not from the text of the question.
"""

import re
from collections.abc import Sequence
from enum import StrEnum

from coconut_ds.data.graph_stats import GRAPH_KEYS, question_of, shortcut_points
from coconut_ds.data.graphs import GraphQuestion
from coconut_ds.data.problem import Problem
from coconut_ds.errors import DataError
from coconut_ds.formats import TEXT, Format, is_correct


class Category(StrEnum):
    """Categories of generated texts, in the order of the paper; `categorise` defines them exactly."""

    CORRECT_PATH = "correct_path"
    """Part of a shortest path from root to target."""
    LONGER_PATH = "longer_path"
    """Part of a path from root to target, but not of a shortest one."""
    HALLUCINATION = "hallucination"
    """A step that is not an edge of the graph, or steps that are not connected with each other or with the root."""
    WRONG_TARGET = "wrong_target"
    """A path from the root that does not lead to the target, or that is not followed by the correct answer."""
    CORRECT_LABEL = "correct_label"
    """No steps, and the correct answer."""
    INCORRECT_LABEL = "incorrect_label"
    """No steps, and a wrong answer or none."""


CATEGORY_NAMES: dict[Category, str] = {category: category.replace("_", " ") for category in Category}
"""The categories' names in tables, in the order of the rows."""


def is_graph_problem(problem: Problem) -> bool:
    """Whether the problem has a graph: the keys of the published ProsQA files, not all of them null."""
    extra = problem.extra
    return all(key in extra for key in GRAPH_KEYS) and any(extra[key] is not None for key in GRAPH_KEYS)


def graph_fault(problem: Problem, where: str = "problem") -> str | None:
    """Why the graph of a graph problem cannot be used by the other functions, as the message of ``question_of``."""
    try:
        question_of(problem, where)
    except DataError as error:
        return str(error)
    return None


def has_usable_graph(problem: Problem) -> bool:
    """Whether the problem has a graph that the other functions can use."""
    return is_graph_problem(problem) and graph_fault(problem) is None


def shortcuts(problem: Problem, where: str = "problem") -> dict[str, float]:
    """The scores of two guesses that do not follow any path, ``more_ancestors`` and ``mentioned_less`` (`GraphStats`).

    Returns:
        For each guess, 1 if it is correct, 0 if it is wrong, and 0.5 if it cannot distinguish the options.

    Raises:
        DataError: as ``question_of``.
    """
    return shortcut_points(question_of(problem, where))


def categorise(
    problem: Problem, text: str, format: Format = TEXT, *, whole: bool = False, where: str = "problem"
) -> Category:
    """The category of a generated text.

    Steps are the sentences before the last ``#``; the answer is the one that scoring extracts. ``CORRECT_PATH``,
    ``LONGER_PATH`` and ``CORRECT_LABEL`` require the correct answer, so their shares never sum to more than the
    accuracy. The difference is the share of texts with the correct answer whose steps are hallucinated or do not lead
    to it. The rules, in order:

    1. No steps: ``CORRECT_LABEL`` or ``INCORRECT_LABEL``. A text without ``#`` that is one of the two options is an
       answer; any other text without ``#`` consists of steps and was cut off before its answer.
    2. ``HALLUCINATION``: a sentence has neither the form "[Every] X is a Y" nor "X>Y", or is not an edge; a step does
       not start where the previous step ended; or the first step cannot be reached from the root. The answer has no
       influence.
    3. ``WRONG_TARGET``: the target cannot be reached from the last step, or the answer is not correct.
    4. ``CORRECT_PATH`` if the steps, completed by as few edges as possible, are as long as a shortest path; otherwise
       ``LONGER_PATH``.

    Because thoughts replace the first steps (in ``coconut_reversed``, the last), a part of a path is judged by its
    shortest completion at both ends. In formats with one target token, whose steps are not sentences, only the answer
    is judged.

    Args:
        problem: a problem with a graph.
        text: the generated text, without markers.
        format: the format of the text.
        whole: whether no thoughts replace steps (chain of thought, stage 0). Then steps that do not start at the root
            are a ``HALLUCINATION``, and steps that end before the target a ``WRONG_TARGET``.
        where: names the problem in errors.

    Raises:
        DataError: as ``question_of``.
    """
    question = question_of(problem, where)
    right = is_correct(text, problem.answer, format)
    steps = [] if format.one_token else _steps(text, problem, question)
    if not steps:
        return Category.CORRECT_LABEL if right else Category.INCORRECT_LABEL
    path = _path(steps, problem.extra["idx_to_symbol"], question)
    if path is None:
        return Category.HALLUCINATION
    return _of_path(path, question, right, whole)


def _of_path(path: Sequence[int], question: GraphQuestion, right: bool, whole: bool) -> Category:
    from_root = question.graph.distances(question.root)
    before, after = from_root.get(path[0]), question.graph.distances(path[-1]).get(question.target)
    if before is None or (whole and before > 0):
        return Category.HALLUCINATION
    if after is None or (whole and after > 0) or not right:
        return Category.WRONG_TARGET
    length = before + len(path) - 1 + after
    return Category.CORRECT_PATH if length == from_root[question.target] else Category.LONGER_PATH


def _steps(text: str, problem: Problem, question: GraphQuestion) -> list[str]:
    symbols = problem.extra["idx_to_symbol"]
    written, mark, _ = text.rpartition("#")
    if not mark:
        distractor = symbols[question.distractor]
        bare = problem.answer == symbols[question.target]
        other = distractor if bare else f"{symbols[question.root]} is a {distractor}."
        written = "" if any(is_correct(text, option) for option in (problem.answer, other)) else text
    return [sentence for sentence in re.split(r"[.\n]", written.rstrip("#")) if sentence.strip()]


def _path(steps: Sequence[str], symbols: Sequence[str], question: GraphQuestion) -> list[int] | None:
    """The nodes along the steps; None if a step is not an edge or does not start where the previous one ended."""
    nodes, edges = {symbol: node for node, symbol in enumerate(symbols)}, set(question.graph.edges)
    path: list[int] = []
    for step in steps:
        read = re.fullmatch(r"(?:Every )?(\S+)(?: is a |>)(\S+)", " ".join(step.split()))
        if read is None:
            return None
        parent, child = (nodes.get(word, -1) for word in read.groups())
        if (parent, child) not in edges or (path and path[-1] != parent):
            return None
        path += [child] if path else [parent, child]
    return path
