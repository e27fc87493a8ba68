"""What a generated text on a graph problem (ProsQA's format) did: which kind of path it wrote, or which label.

Does: the six categories of Coconut's analysis (Hao et al. 2024, arXiv:2412.06769, section 5.1), which cover all texts
without overlap, and the points of the two shortcuts of `graph_stats` on a single problem. Does not: read the graph from
the question's text; it stands in ``Problem.extra``.
"""

import re
from collections.abc import Sequence
from enum import StrEnum

from coconut_ds.data.graph_stats import GRAPH_KEYS, question_of, shortcut_points
from coconut_ds.data.graphs import GraphQuestion
from coconut_ds.data.problem import Problem
from coconut_ds.formats import TEXT, Format, is_correct


class Category(StrEnum):
    """Kinds of generated texts, in the order of the paper; `categorise` draws the lines."""

    CORRECT_PATH = "correct_path"
    """Part of a shortest path from root to target."""
    LONGER_PATH = "longer_path"
    """Part of a path from root to target, but of no shortest one."""
    HALLUCINATION = "hallucination"
    """A step that is no edge of the graph, or a chain that is disconnected, in itself or from the root."""
    WRONG_TARGET = "wrong_target"
    """A path from the root that does not lead to the target, or is followed by another answer or none."""
    CORRECT_LABEL = "correct_label"
    """No step, and the right answer."""
    INCORRECT_LABEL = "incorrect_label"
    """No step, and a wrong answer or none."""


CATEGORY_NAMES: dict[Category, str] = {category: category.replace("_", " ") for category in Category}
"""How a table names the categories, in the order of its rows."""


def is_graph_problem(problem: Problem) -> bool:
    """Whether the problem carries a graph (the keys of the published ProsQA files), so that the others take it."""
    return all(key in problem.extra for key in GRAPH_KEYS)


def shortcuts(problem: Problem, where: str = "problem") -> dict[str, float]:
    """What two guesses that read no path score: keys ``more_ancestors`` and ``mentioned_less``, as in `GraphStats`.

    Returns:
        1 where the guess is right, 0 where it is wrong, 0.5 where it cannot tell the options apart.

    Raises:
        DataError: as ``question_of``.
    """
    return shortcut_points(question_of(problem, where))


def categorise(
    problem: Problem, text: str, format: Format = TEXT, *, whole: bool = False, where: str = "problem"
) -> Category:
    """The category of a generated text.

    Steps are the sentences before the last ``#``, the answer is what scoring finds. The right answer is necessary for
    ``CORRECT_PATH``, ``LONGER_PATH`` and ``CORRECT_LABEL``; so these three together never exceed the accuracy, and fall
    short of it by the hallucinations that end in the right answer and the paths that do not lead to it. In order:

    1. No steps: ``CORRECT_LABEL`` or ``INCORRECT_LABEL``. A text without ``#`` that consists of one of the two options
       is an answer; any other text without ``#`` consists of steps and was cut off before its answer.
    2. ``HALLUCINATION``: a sentence cannot be read as "[Every] X is a Y" or "X>Y", or is no edge; a step does not begin
       where the one before ended; or the root does not reach the first step. Which answer follows makes no difference.
    3. ``WRONG_TARGET``: the last step does not reach the target; or the answer is not the right one.
    4. ``CORRECT_PATH`` if the steps and the fewest edges that complete them are as many as a shortest path has,
       otherwise ``LONGER_PATH``.

    Thoughts stand for the first steps, or in ``coconut_reversed`` for the last, so a part of a path counts by its best
    completion at both ends. With one-token formats, whose steps are no sentences, only the answer counts.

    Args:
        problem: one that carries a graph.
        text: without markers of thoughts.
        format: of the text.
        whole: nothing stands for steps (chain of thought, stage 0), so a chain that does not begin at the root is
            ``HALLUCINATION`` and one that stops before the target ``WRONG_TARGET``.
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
    """The nodes that the steps lead along; none if a step is no edge or does not begin where the one before ended."""
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
