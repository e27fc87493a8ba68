"""The text, heights and changed edges of graph problems, each against a slow and obvious count."""

import itertools
import random

import pytest
from making_graphs import ALL_FORMATS, FORMATS, problems_of, walks

from coconut_ds.data.graph_stats import question_of
from coconut_ds.data.graph_text import graph_text, redirected, unrelated
from coconut_ds.data.graphs import Graph
from coconut_ds.probing.superposition import edge_groups, node_groups


@pytest.mark.parametrize("form", FORMATS)
def test_heights_groups_and_optimal_edges_are_those_of_all_paths(form):
    for problem in problems_of(form):
        text = graph_text(problem, FORMATS[form])
        graph, root, target = text.graph, text.asked.root, text.asked.target
        for node in range(graph.num_nodes):
            lengths = [len(walk) - 1 for walk in walks(graph, node) if not graph.children[walk[-1]]]
            assert (graph.heights()[node], graph.heights(longest=True)[node]) == (min(lengths), max(lengths))
        paths = walks(graph, root)
        hops = {node: min(len(p) - 1 for p in paths if p[-1] == node) for node in {p[-1] for p in paths}}
        shortest = [p for p in paths if p[-1] == target and len(p) - 1 == hops[target]]
        assert text.optimal == {edge for path in shortest for edge in itertools.pairwise(path)}
        reaching = {node for node in range(graph.num_nodes) if any(walk[-1] == target for walk in walks(graph, node))}
        assert text.correct == reaching
        for hop in (1, 2, 3):
            groups = node_groups(text, hop)
            assert set(groups["not reachable"]) == set(range(graph.num_nodes)) - set(hops)
            assert set(groups["reachable"]) == {node for node, d in hops.items() if d <= hop}
            assert set(groups["frontier"]) == {node for node, d in hops.items() if d == hop}
            assert set(groups["optimal"]) == {path[hop] for path in shortest if hop < len(path)}
            edges = edge_groups(text, hop)
            assert set(edges["not reachable"]) == {e for e in graph.edges if e[0] not in hops}
            assert set(edges["reachable"]) == {e for e in graph.edges if hops.get(e[0], 99) <= hop - 1}
            assert set(edges["frontier"]) == {e for e in graph.edges if hops.get(e[0]) == hop - 1}
            assert set(edges["optimal"]) == {(path[hop - 1], path[hop]) for path in shortest if hop < len(path)}


@pytest.mark.parametrize("form", ALL_FORMATS)
def test_a_changed_edge_changes_the_answer_or_not(form):
    """The changed graph is read back from the changed question, sentence by sentence."""
    changed = 0
    for index, problem in enumerate(problems_of(form, 30)):
        text = graph_text(problem, ALL_FORMATS[form])
        for make, turns in ((redirected, True), (unrelated, False)):
            twin = make(text, random.Random(index))
            if twin is None:
                continue
            changed += turns
            new = twin.problem
            if form == "symbolic":
                edges = [tuple(pair.split()) for pair in new.question.split(" [Q] ")[0].split(" | ")]
            elif form == "symbolic arrows":
                edges = [tuple(pair.split(">")) for pair in new.question.split(" [Q] ")[0].split()]
                assert new.steps[-1] == new.answer
                assert text.names(0) == [text.symbols[0]]
            elif form == "arrows":
                edges = [tuple(pair.split(">")) for pair in new.question.split(" From ")[0].split()]
                assert [tuple(step.split(">"))[1] for step in new.steps][-1] == new.answer
            else:
                sentences = new.question.split(" Is ")[0].replace("Every ", "").rstrip(".").split(". ")
                edges = [tuple(sentence.split(" is a ")) for sentence in sentences]
            nodes = {symbol: node for node, symbol in enumerate(text.symbols)}
            graph = Graph(len(nodes), tuple((nodes[a], nodes[b]) for a, b in edges))
            assert sorted(graph.edges) == sorted(twin.graph.edges)
            assert len(set(text.graph.edges) ^ set(graph.edges)) == 2
            reached = {walk[-1] for walk in walks(graph, text.asked.root)}
            assert (text.asked.target in reached, text.asked.distractor in reached) == (not turns, turns)
            goal = text.symbols[text.asked.distractor if turns else text.asked.target]
            assert new.answer.rstrip(".").split()[-1] == goal
            assert question_of(new).target == nodes[goal]
            assert len(new.steps) == graph.distances(text.asked.root)[nodes[goal]]
            asked = {"arrows": " From ", "text": " Is "}.get(form, "[Q]")
            assert new.question.split(asked)[1] == problem.question.split(asked)[1]
            for edge in twin.graph.edges:
                start, end = twin.span(edge)
                assert new.question[start:end] == twin.edge(edge)
    assert changed > 10
