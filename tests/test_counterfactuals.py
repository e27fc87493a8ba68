"""Whether answers follow an edge that was changed in the question."""

import pytest
from making_graphs import make_graph_reasoner, problems_of

from coconut_ds.probing import counterfactuals as counterfactuals_module
from coconut_ds.probing.baselines import Baseline
from coconut_ds.probing.cases import Case
from coconut_ds.probing.counterfactuals import counterfactuals


@pytest.mark.parametrize("follows", [True, False])
def test_counterfactuals_count_answers_that_follow_the_change(monkeypatch, follows):
    """Answers of a model that reads the graph, and of one that only remembers which option is right."""
    problems = problems_of("text", 12)
    reasoner = make_graph_reasoner("text", problems)
    known = {problem.question.split("Is ")[-1]: problem.answer for problem in problems}

    def answer(question: str) -> str:
        edges, (_, asked) = {}, question.split(" Is ")
        for sentence in question.split(" Is ")[0].replace("Every ", "").rstrip(".").split(". "):
            parent, child = sentence.split(" is a ")
            edges.setdefault(parent, []).append(child)
        root, first, second = asked.rstrip("?").replace(" a ", " ").replace(" or ", " ").split()
        reached = [root]
        for name in reached:
            reached += [child for child in edges.get(name, []) if child not in reached]
        right = f"{root} is a {first if first in reached else second}."
        return right if follows else known[asked]

    def answers(reasoner, questions, *arguments):
        made = [answer(question) for question in questions]
        return [Baseline(Case(q, None), None, (), f"### {a}", a, 0.0) for q, a in zip(questions, made, strict=True)]

    monkeypatch.setattr(counterfactuals_module, "baselines_of", answers)
    made = counterfactuals(reasoner, problems)
    assert (made.num_problems, made.num_right) == (12, 12)
    assert len(made.cases) > 6
    assert made.followed.estimate == float(follows)
    assert made.stayed.estimate == 1.0
    assert all(one.followed == follows and one.answer != one.right_answer for one in made.cases)


def test_problems_answered_wrongly_are_not_changed():
    problems = problems_of("text", 3)
    found = counterfactuals(make_graph_reasoner("text", problems), problems)
    assert (found.num_problems, found.num_right, found.followed, found.stayed, found.cases) == (3, 0, None, None, ())
