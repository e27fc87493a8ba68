"""Checks a generated ProsQA problem against its own text, with every path enumerated."""

from itertools import pairwise

from coconut_ds.data.graph_stats import question_of
from coconut_ds.data.graphs import NAMES
from coconut_ds.data.problem import Problem


def check_problem(problem: Problem) -> None:
    """Reads the problem from its text alone and holds it to what its graph and the format promise."""
    symbols, edges = problem.extra["idx_to_symbol"], [tuple(edge) for edge in problem.extra["edges"]]
    root, target, distractor = (problem.extra[key] for key in ("root", "target", "neg_target"))
    children = {child for _, child in edges}
    assert {node for edge in edges for node in edge} == set(range(len(symbols))), "a node without sentence"
    assert len(set(edges)) == len(edges)
    assert all(parent < child for parent, child in edges)
    assert len(set(symbols)) == len(symbols)
    assert all((symbol in NAMES) == (node not in children) for node, symbol in enumerate(symbols))

    def sentence(parent: int, child: int) -> str:
        return f"{'Every ' if parent in children else ''}{symbols[parent]} is a {symbols[child]}."

    context, separator, asked = problem.question.rpartition(". ")
    assert sorted((context + separator).replace(". ", ".\n").split("\n")[:-1]) == sorted(sentence(*e) for e in edges)
    first, second = symbols[target], symbols[distractor]
    assert asked in (f"Is {symbols[root]} a {first} or {second}?", f"Is {symbols[root]} a {second} or {first}?")
    assert problem.answer == f"{symbols[root]} is a {symbols[target]}."

    paths = all_paths(edges, root)
    to_target = [path for path in paths if path[-1] == target]
    shortest = min(map(len, to_target))
    wordings = [tuple(sentence(*edge) for edge in pairwise(path)) for path in to_target if len(path) == shortest]
    assert problem.steps in wordings
    assert not any(path[-1] == distractor for path in paths), "the root reaches the distractor"
    assert not {target, distractor} & {parent for parent, _ in edges}, "an option is no sink"

    question = question_of(problem)
    assert question.graph.distances(root)[target] == shortest - 1
    assert question.graph.shortest_path_counts(root)[target] == len(wordings)
    for option in (target, distractor):
        above = {path[i] for path in all_paths([(c, p) for p, c in edges], option) for i in range(1, len(path))}
        assert question.graph.ancestors(option) == above


def all_paths(edges: list[tuple[int, int]], start: int) -> list[list[int]]:
    """Every path from ``start``, one by one: the slow definition of reachability and of shortest paths."""
    below: dict[int, list[int]] = {}
    for parent, child in edges:
        below.setdefault(parent, []).append(child)
    paths = [[start]]
    for path in paths:  # grows while it is read
        paths += [[*path, child] for child in below.get(path[-1], [])]
    return paths
