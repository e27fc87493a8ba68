"""Whether answers follow the graph: one edge is changed, and the right answer with it (arXiv 2607.06648).

A model that searches follows the change; one that answers by a shortcut need not. Control: an edge that the root does
not reach is changed, and the answer must stay.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass

from coconut_ds.data.problem import Problem
from coconut_ds.errors import DataError
from coconut_ds.evaluation.statistics import Mean, mean_of
from coconut_ds.formats import is_correct
from coconut_ds.probing.baselines import baselines_of
from coconut_ds.probing.cases import Plain
from coconut_ds.probing.graph_text import graph_text, redirected, unrelated
from coconut_ds.reasoner import Reasoner


@dataclass(frozen=True)
class CounterfactualCase(Plain):
    """One problem that was answered right, and its changed twin."""

    question: str
    changed: str
    answer: str
    """To the question as it was; right."""
    changed_answer: str
    """What the model answers to the changed question."""
    right_answer: str
    """To the changed question."""
    followed: bool
    """The changed answer is right."""


@dataclass(frozen=True)
class Counterfactuals(Plain):
    """Single-edge changes over a data set."""

    num_problems: int
    num_right: int
    """Answered right as they were; only these are changed."""
    followed: Mean | None
    """Share of changed questions answered right, where one edge turns the answer round; None where there are none."""
    stayed: Mean | None
    """Of the control: share still answered right after a change that the root does not reach."""
    cases: tuple[CounterfactualCase, ...]
    """Of ``followed``."""


def counterfactuals(
    reasoner: Reasoner, problems: Sequence[Problem], *, n_thoughts: int | None = None, seed: int = 0
) -> Counterfactuals:
    """Changes one edge in each problem that is answered right.

    Args:
        reasoner: the model.
        problems: that carry graphs.
        n_thoughts: thoughts or pauses; None: the checkpoint's number.
        seed: of the choice of edges.

    Raises:
        DataError: a problem carries no graph, or none is given.
    """
    if not problems:
        raise DataError("counterfactuals: found no problem, expected at least one that carries a graph")
    form = reasoner.card.text_format
    texts = [graph_text(problem, form, f"problem {index}") for index, problem in enumerate(problems)]
    before = baselines_of(reasoner, [problem.question for problem in problems], n_thoughts)
    right = [
        (text, one) for text, one in zip(texts, before, strict=True) if is_correct(one.text, text.problem.answer, form)
    ]
    pairs = []
    for kind, make in (("redirected", redirected), ("unrelated", unrelated)):
        for index, (text, one) in enumerate(right):
            twin = make(text, random.Random(f"{kind}/{seed}/{index}"))
            if twin is not None:
                pairs.append((kind, one, twin.problem))
    after = baselines_of(reasoner, [problem.question for _, _, problem in pairs], n_thoughts) if pairs else []
    outcomes: dict[str, list[float]] = {"redirected": [], "unrelated": []}
    cases = []
    for (kind, one, problem), made in zip(pairs, after, strict=True):
        follows = is_correct(made.text, problem.answer, form)
        outcomes[kind].append(float(follows))
        if kind == "redirected":
            cases.append(
                CounterfactualCase(
                    one.case.question, problem.question, one.answer, made.answer, form.extract(problem.answer), follows
                )
            )
    followed, stayed = (mean_of(values) if values else None for values in outcomes.values())
    return Counterfactuals(len(problems), len(right), followed, stayed, tuple(cases))
