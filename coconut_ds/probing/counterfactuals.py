"""Counterfactual graphs: one edge is changed so that the right answer changes too (arXiv 2607.06648).

A model that searches the graph should give the new answer; a model that uses a shortcut may not. In the control, an
edge that cannot be reached from the root is changed, and the answer must stay the same.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass

from coconut_ds.data.graph_text import graph_text, redirected, unrelated
from coconut_ds.data.problem import Problem
from coconut_ds.errors import DataError
from coconut_ds.evaluation.statistics import Mean, mean_of
from coconut_ds.formats import is_correct
from coconut_ds.probing.baselines import baselines_of
from coconut_ds.probing.cases import Plain
from coconut_ds.reasoner import Reasoner


@dataclass(frozen=True)
class CounterfactualCase(Plain):
    """A problem that the model answered correctly, and its counterfactual version."""

    question: str
    changed: str
    """The question of the counterfactual version."""
    answer: str
    """The model's answer to the original question, which is right."""
    changed_answer: str
    """The model's answer to the counterfactual question."""
    right_answer: str
    """The right answer to the counterfactual question."""
    followed: bool
    """Whether the model's answer to the counterfactual question is right."""


@dataclass(frozen=True)
class Counterfactuals(Plain):
    """Results of single-edge changes over a data set."""

    num_problems: int
    num_right: int
    """Number of problems whose original question is answered correctly; only these are changed."""
    followed: Mean | None
    """Share of right answers to counterfactual questions, whose answer one edge reverses; None if there are none."""
    stayed: Mean | None
    """Control: share of right answers after an edge that the root does not reach is changed; None if there are none."""
    cases: tuple[CounterfactualCase, ...]
    """The individual cases that ``followed`` averages over."""


def counterfactuals(
    reasoner: Reasoner, problems: Sequence[Problem], *, n_thoughts: int | None = None, seed: int = 0
) -> Counterfactuals:
    """Changes one edge in each problem that the model answers correctly, and asks the model again.

    Args:
        reasoner: the model.
        problems: problems with graphs.
        n_thoughts: number of thoughts or pauses; None: the checkpoint's number.
        seed: seed of the random choice of edges.

    Raises:
        DataError: a problem has no graph, or there are no problems.
    """
    if not problems:
        raise DataError("counterfactuals: found no problem, expected at least one with a graph")
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
