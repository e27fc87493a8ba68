"""Values of graph nodes after k thoughts, against passes over whole sequences and sums by hand."""

import json
import math

import pytest
from making_graphs import FORMATS, make_graph_reasoner, problems_of, slow_probabilities

from coconut_ds.data.graph_text import graph_text
from coconut_ds.probing.answers import answers_after
from coconut_ds.probing.graph_values import graph_views, height_values, parallelism


@pytest.mark.parametrize("form", FORMATS)
def test_values_are_probabilities_of_names_normalised_over_the_frontier(form):
    problems = problems_of(form, 3)
    reasoner = make_graph_reasoner(form, problems)
    views = graph_views(reasoner, problems)
    for problem, view in zip(problems, views, strict=True):
        text = graph_text(problem, FORMATS[form])
        distances = text.graph.distances(text.asked.root)
        assert [one.num_thoughts for one in view.after] == [0, 1, 2]
        for number, frontier in enumerate(view.after):
            before = "Every" if number else f"{text.symbols[text.asked.root]} is a"
            hop = max(number, 1)
            if form != "text":
                before, hop = "", number + 1
            assert (frontier.hop, frontier.before) == (hop, before)
            assert {one.node for one in frontier.nodes} == set(range(text.graph.num_nodes))
            words = slow_probabilities(reasoner, problem.question, number, before)
            slow = {node: words[name] for node, name in enumerate(text.symbols)}
            if form == "arrows":
                for node, name in enumerate(text.symbols):
                    edges = [f"{text.symbols[a]}>{name}" for a, b in text.graph.edges if b == node]
                    slow[node] = sum(words[edge] for edge in edges) if edges else slow[node]
            mass = sum(slow[node] for node, distance in distances.items() if distance == hop)
            assert frontier.mass == pytest.approx(mass, rel=1e-3)
            for one in frontier.nodes:
                assert one.probability == pytest.approx(slow[one.node], rel=1e-3)
                assert one.in_frontier == (distances.get(one.node) == hop)
                expected = pytest.approx(slow[one.node] / mass, rel=1e-3) if one.in_frontier else None
                assert one.value == expected
    json.dumps([view.as_dict() for view in views], allow_nan=False)
    short = graph_views(reasoner, problems, frontier_only=True)
    for view, whole in zip(short, views, strict=True):
        for some, everything in zip(view.after, whole.after, strict=True):
            kept = [one for one in everything.nodes if one.in_frontier]
            assert [one.name for one in some.nodes] == [one.name for one in kept]
            assert [one.value for one in some.nodes] == pytest.approx([one.value for one in kept], rel=1e-3)


def test_answers_of_symbolic_problems_follow_their_cue():
    problems = problems_of("symbolic", 2)
    reasoner = make_graph_reasoner("symbolic", problems)
    known = [problem.answer for problem in problems]
    for problem, after in zip(problems, answers_after(reasoner, [p.question for p in problems], known), strict=True):
        for number, one in enumerate(after):
            words = slow_probabilities(reasoner, problem.question, number, "[A]")
            best = max(words, key=words.__getitem__)
            assert (one.answer, one.forced) == (best, best)
            assert one.probability == pytest.approx(words[best], rel=1e-3)
            assert math.exp(one.known_log_probability) == pytest.approx(words[problem.answer], rel=1e-3)


def test_parallelism_and_height_values_by_hand():
    problems = problems_of("text", 5)
    views = graph_views(make_graph_reasoner("text", problems), problems, [1, 2], frontier_only=True)
    for number, curve in zip((1, 2), parallelism(views), strict=True):
        values = [sorted((n.value for n in view.after[number - 1].nodes), reverse=True) for view in views]
        assert (curve.num_thoughts, curve.num_problems) == (number, 5)
        for top in (1, 2, 3):
            assert curve.cumulative[f"top {top}"] == pytest.approx(sorted(sum(own[:top]) for own in values))
    found = height_values(views)
    for one in found:
        nodes = [node for view in views for node in view.after[one.num_thoughts - 1].nodes]
        for is_correct, mean, count in (
            (True, one.correct, one.num_correct),
            (False, one.incorrect, one.num_incorrect),
        ):
            own = [
                node.value
                for node in nodes
                if getattr(node, f"height_{one.definition}") == one.height and node.is_correct == is_correct
            ]
            assert len(own) == count
            assert mean is None if not own else mean.estimate == pytest.approx(sum(own) / count)
    nodes = sum(len(view.after[index].nodes) for view in views for index in (0, 1))
    for definition in ("shortest", "longest"):
        assert sum(one.num_correct + one.num_incorrect for one in found if one.definition == definition) == nodes
