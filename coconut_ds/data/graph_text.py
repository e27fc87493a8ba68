"""Maps graph problems to their text: where an edge is written, what precedes a node's name, and edits of single edges.

Supports the notations of `data.graph_writing`: the sentences of ProsQA, triples of symbols, and arrows (one word per
edge), whose steps are edges, or nodes as those of triples.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from typing import Literal

from coconut_ds.data.graph_stats import question_of
from coconut_ds.data.graphs import Edge, Graph, GraphQuestion, arrow
from coconut_ds.data.problem import Problem
from coconut_ds.errors import DataError
from coconut_ds.formats import Format


@dataclass(frozen=True)
class GraphText:
    """A graph problem together with its parsed graph."""

    problem: Problem
    asked: GraphQuestion
    """The graph, its root, and the two options: target and distractor."""
    symbols: Sequence[str]
    """Names of the nodes, by index."""
    wording: Literal["sentences", "triples", "arrows"]
    """How edges are written: ``Every 1 is a 2.``, ``1 2 |`` or ``1>2``."""
    nodes_as_steps: bool
    """Whether a step is a node instead of an edge: with triples, and with arrows whose question has ``[Q]``."""

    @property
    def graph(self) -> Graph:
        """The graph."""
        return self.asked.graph

    def edge(self, edge: Edge) -> str:
        """An edge as it is written in the question."""
        parent, child = (self.symbols[node] for node in edge)
        if self.wording == "triples":
            return f"{parent} {child}"
        if self.wording == "arrows":
            return arrow(parent, child)
        sentence = f"{parent} is a {child}."
        # A class is written "Every A is a B."; a person, who is not a class, "A is a B."
        return f"Every {sentence}" if f"Every {sentence}" in self.problem.question else sentence

    def step(self, edge: Edge) -> str:
        """The step of a solution that follows an edge: the edge, or the node where it ends."""
        return self.symbols[edge[1]] if self.nodes_as_steps else self.edge(edge)

    def span(self, edge: Edge) -> tuple[int, int]:
        """Start and end (exclusive) of an edge in the question, in characters.

        Raises:
            DataError: the question does not contain the edge.
        """
        text, place = self.problem.question, -1
        wanted = self.edge(edge)
        triples = self.wording == "triples"
        ends = (" |", " [Q]") if triples else (" ",)
        while (place := text.find(wanted, place + 1)) >= 0:
            begins = place == 0 or (text[place - 1] == " " and (not triples or text[place - 2] == "|"))
            if begins and any(text.startswith(end, place + len(wanted)) for end in ends):
                return place, place + len(wanted)
        raise DataError(f"{text[:60]!r}…: does not contain the edge {wanted!r} of its graph")

    def before_node(self, stage: int) -> str:
        """The text that comes directly before the name of a node at ``hop(stage)``; "" if there is none."""
        if self.wording != "sentences":
            return ""
        return "Every" if stage else f"{self.symbols[self.asked.root]} is a"

    def names(self, node: int) -> list[str]:
        """The texts that name a node as the next one: its symbol or, with arrows, each edge that leads to it."""
        if self.wording != "arrows" or self.nodes_as_steps:
            return [self.symbols[node]]
        return [self.edge((parent, node)) for parent in self.graph.parents[node]] or [self.symbols[node]]

    def hop(self, stage: int) -> int:
        """Distance from the root, in edges, of the nodes that can be named next after ``stage`` steps of thought.

        In sentences, a step begins by repeating the node at which the previous step ended.
        """
        return max(stage, 1) if self.wording == "sentences" else stage + 1

    def frontier(self, hop: int) -> list[int]:
        """Nodes whose shortest distance from the root is ``hop``."""
        return [node for node, distance in self.graph.distances(self.asked.root).items() if distance == hop]

    @cached_property
    def correct(self) -> set[int]:
        """Nodes from which the target can be reached, including the target itself."""
        return self.graph.ancestors(self.asked.target) | {self.asked.target}

    @cached_property
    def optimal(self) -> set[Edge]:
        """Edges of all shortest paths from the root to the target."""
        from_root, target = self.graph.distances(self.asked.root), self.asked.target
        length = from_root[target]
        to_target = {n: d for n in from_root if (d := self.graph.distances(n).get(target)) is not None}
        return {
            (parent, child)
            for parent, child in self.graph.edges
            if parent in to_target and child in to_target and from_root[parent] + 1 + to_target[child] == length
        }

    def with_edge(self, old: Edge, new: Edge, rng: random.Random) -> "GraphText":
        """The same question with the edge ``old`` replaced by ``new``, and the answer and steps of the new graph.

        In the new graph, the root must reach exactly one of the two options.
        """
        graph = Graph(self.graph.num_nodes, tuple(new if edge == old else edge for edge in self.graph.edges))
        asked = self.asked
        if asked.target not in graph.distances(asked.root):
            asked = replace(asked, target=asked.distractor, distractor=asked.target)
        asked = replace(asked, graph=graph)
        start, end = self.span(old)
        before, after = self.edge(old), self.symbols[old[1]]
        at = before.rindex(after)
        written = before[:at] + self.symbols[new[1]] + before[at + len(after) :]
        question = self.problem.question[:start] + written + self.problem.question[end:]
        names = [self.symbols[node] for node in graph.draw_shortest_path(rng, asked.root, asked.target)]
        steps, answer = tuple(names[1:]), names[-1]
        if self.wording == "arrows" and not self.nodes_as_steps:
            steps = tuple(arrow(a, b) for a, b in pairwise(names))
        elif self.wording == "sentences":
            steps = tuple(f"{'Every ' if i else ''}{a} is a {b}." for i, (a, b) in enumerate(pairwise(names)))
            answer = f"{names[0]} is a {answer}."
        problem = Problem(question, steps, answer, {**self.problem.extra, **asked.as_dict(self.symbols)})
        return replace(self, problem=problem, asked=asked)


def graph_text(problem: Problem, format: Format, where: str = "problem") -> GraphText:
    """Parses the graph of a problem.

    Args:
        problem: the problem.
        format: the text format, which determines the notation of the graph together with the question.
        where: description of the problem for error messages.

    Raises:
        DataError: the problem has no graph.
    """
    asked, symbols = question_of(problem, where), problem.extra["idx_to_symbol"]
    first = [symbols[node] for node in asked.graph.edges[0]]
    nodes_as_steps = format.one_token or " [Q] " in problem.question
    if arrow(*first) in problem.question.split():
        return GraphText(problem, asked, symbols, "arrows", nodes_as_steps)
    return GraphText(problem, asked, symbols, "triples" if nodes_as_steps else "sentences", nodes_as_steps)


def redirected(text: GraphText, rng: random.Random) -> GraphText | None:
    """Redirects one edge on the path to the target, so that the root reaches the distractor instead of the target.

    Returns None if no single edge does that.
    """
    graph, asked = text.graph, text.asked
    to_distractor = graph.ancestors(asked.distractor) | {asked.distractor}
    goals = [node for node in to_distractor if node not in text.correct]
    choices = []
    for old in sorted(text.optimal):
        rest = Graph(graph.num_nodes, tuple(edge for edge in graph.edges if edge != old))
        if asked.target in rest.distances(asked.root):
            continue
        choices += [(old, (old[0], goal)) for goal in sorted(goals) if _fits(graph, old, goal)]
    return text.with_edge(*rng.choice(choices), rng) if choices else None


def unrelated(text: GraphText, rng: random.Random) -> GraphText | None:
    """Redirects one edge that the root does not reach, which does not change the answer. None if there is none."""
    graph, reached = text.graph, text.graph.distances(text.asked.root)
    ends = (text.asked.target, text.asked.distractor)
    outside = [node for node in range(graph.num_nodes) if node not in reached and node not in ends]
    choices = [
        (old, (old[0], goal))
        for old in graph.edges
        if old[0] not in reached and old[1] not in ends
        for goal in outside
        if _fits(graph, old, goal)
    ]
    return text.with_edge(*rng.choice(choices), rng) if choices else None


def _fits(graph: Graph, old: Edge, goal: int) -> bool:
    """Whether the edge from ``old``'s parent to ``goal`` is new, creates no cycle and does not end in a source node."""
    parent = old[0]
    is_new = (parent, goal) not in graph.edges and goal != parent
    return is_new and goal not in graph.sources and parent not in graph.distances(goal)
