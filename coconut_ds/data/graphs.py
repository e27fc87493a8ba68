"""Directed acyclic graphs, and questions about them in the words of ProsQA. Used by `prosqa`, `layered` and `symbolic`.

This module computes reachability and shortest paths, draws shortest paths uniformly, computes a fingerprint that does
not depend on the numbering of the nodes, and writes questions as text. `prosqa` and `layered` generate the graphs. An
edge (u, v) means "u is a v" and leads to a higher index. All randomness comes from the ``random.Random`` that is passed
in, so a problem is a pure function of its seed.

Sentences, names and concepts are those of the published ProsQA files (Hao et al. 2024, arXiv:2412.06769). The
wording as arrows has one word per edge, for models too small to learn which words of a sentence belong together.
"""

import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import islice, pairwise, product
from typing import Any

from coconut_ds.data.problem import Problem

Edge = tuple[int, int]

_NAMES = "Alex Bob Carol Davis Eva Fae Gabriel Jack Max Oliver Polly Rex Sally Sam Stella Tom Wren"
_STEMS = (
    "bom boom brim chor dum fel fom ger gor grim gwom hil im jel jom ker lem lor num quim rem rom ror scrom shum ster "
    "stor ter tim tum vum wor wum yer yim yum zhor zum"
)
NAMES = tuple(_NAMES.split())
CONCEPTS = tuple(f"{stem}pus" for stem in _STEMS.split())


def concepts(count: int) -> tuple[str, ...]:
    """The first ``count`` concepts: the 38 published ones, then invented words that sound similar."""
    invented = (f"{a}{b}{c}pus" for a, b, c in product("bdfghjklmnprstvwyz", "aeiou", "ckdfgstvxz"))
    words = (*CONCEPTS, *islice(invented, max(0, count - len(CONCEPTS))))[:count]
    assert len(words) == count, f"{count} concepts are needed, but only {len(words)} have names"
    return words


MAX_CONCEPTS = len(CONCEPTS) + 18 * 5 * 10


@dataclass(frozen=True)
class Graph:
    """Nodes 0 .. num_nodes - 1 and edges (parent, child) with parent < child."""

    num_nodes: int
    edges: tuple[Edge, ...]

    @cached_property
    def children(self) -> list[list[int]]:
        """Children of each node."""
        lists: list[list[int]] = [[] for _ in range(self.num_nodes)]
        for parent, child in self.edges:
            lists[parent].append(child)
        return lists

    @cached_property
    def parents(self) -> list[list[int]]:
        """Parents of each node."""
        lists: list[list[int]] = [[] for _ in range(self.num_nodes)]
        for parent, child in self.edges:
            lists[child].append(parent)
        return lists

    @property
    def sources(self) -> list[int]:
        """Nodes without parents."""
        return [node for node, above in enumerate(self.parents) if not above]

    @property
    def sinks(self) -> list[int]:
        """Nodes without children."""
        return [node for node, below in enumerate(self.children) if not below]

    def distances(self, start: int) -> dict[int, int]:
        """Length in edges of the shortest path from ``start`` to each reachable node, including itself (0)."""
        return _breadth_first(self.children, start)

    def ancestors(self, node: int) -> set[int]:
        """All nodes from which ``node`` can be reached, except itself."""
        return set(_breadth_first(self.parents, node)) - {node}

    def heights(self, longest: bool = False) -> list[int]:
        """For each node, the length in edges of the shortest (or ``longest``) path to a sink.

        Both quantities are called height: arXiv 2412.06769 says "longest distance to any leaf" in figure 7 and
        "shortest" in section 5.4.
        """
        assert self.is_acyclic, "heights are defined for graphs without a cycle"
        heights = [0] * self.num_nodes
        choose = max if longest else min
        for node in self._children_first():
            if self.children[node]:
                heights[node] = 1 + choose(heights[child] for child in self.children[node])
        return heights

    def _children_first(self) -> list[int]:
        """All nodes that no cycle can be reached from, in an order that puts each node after its children."""
        order: list[int] = []
        left = [len(below) for below in self.children]
        ready = [node for node, count in enumerate(left) if count == 0]
        while ready:
            order.append(ready.pop())
            for parent in self.parents[order[-1]]:
                left[parent] -= 1
                if left[parent] == 0:
                    ready.append(parent)
        return order

    @property
    def is_acyclic(self) -> bool:
        """Whether no path of edges leads from a node back to itself."""
        return len(self._children_first()) == self.num_nodes

    def shortest_path_counts(self, start: int) -> dict[int, int]:
        """The number of shortest paths from ``start`` to each reachable node."""
        distance = self.distances(start)
        counts = {start: 1}
        for node in distance:  # in order of distance
            if node != start:
                counts[node] = sum(counts[parent] for parent in self._before(node, distance))
        return counts

    def draw_shortest_path(self, rng: random.Random, start: int, goal: int) -> list[int]:
        """One of the shortest paths from ``start`` to ``goal``, drawn uniformly."""
        distance, counts = self.distances(start), self.shortest_path_counts(start)
        path = [goal]
        while path[-1] != start:
            before = self._before(path[-1], distance)
            path += rng.choices(before, [counts[parent] for parent in before])
        return path[::-1]

    def _before(self, node: int, distance: dict[int, int]) -> list[int]:
        return [parent for parent in self.parents[node] if distance.get(parent, -1) == distance[node] - 1]

    @cached_property
    def fingerprint(self) -> str:
        """A digest that is equal for graphs that differ only in the numbering of their nodes.

        Computed by colour refinement: a node's new colour combines its colour with those of its parents and children,
        until no new colours appear. Some different graphs also have equal digests; graphs with different digests are
        always different.
        """
        colours, history, num_colours = [0] * self.num_nodes, [], 0
        while True:
            signatures = [
                (colours[node], sorted([colours[p] for p in above]), sorted([colours[c] for c in below]))
                for node, (above, below) in enumerate(zip(self.parents, self.children, strict=True))
            ]
            order = sorted(range(self.num_nodes), key=signatures.__getitem__)
            history.append([signatures[node] for node in order])
            colour = 0
            for before, node in pairwise([*order[:1], *order]):
                colour += signatures[node] != signatures[before]
                colours[node] = colour
            before_that, num_colours = num_colours, len(set(colours))
            if num_colours == before_that:
                return hashlib.sha256(repr(history).encode()).hexdigest()


@lru_cache(maxsize=4096)  # small graphs recur often, and the fingerprint is the most expensive part of a problem
def split_of_graph(graph: Graph) -> str:
    """The only split that may contain this graph: train for 80 % of all graphs, valid for 10 %, test for 10 %."""
    return _split(graph.fingerprint)


def split_of_problem(problem: Problem) -> str:
    """The only split that may contain this problem, decided by its named edges and its question, in any order.

    For settings with few different graphs: a graph may then occur in several splits, but with different names.
    """
    extra = problem.extra
    symbols = extra["idx_to_symbol"]
    edges = sorted((symbols[parent], symbols[child]) for parent, child in extra["edges"])
    options = sorted(symbols[extra[key]] for key in ("target", "neg_target"))
    return _split(hashlib.sha256(repr((edges, symbols[extra["root"]], options)).encode()).hexdigest())


def _split(digest: str) -> str:
    return ("valid", "test")[bucket] if (bucket := int(digest, 16) % 10) < 2 else "train"


def _breadth_first(neighbours: Sequence[Sequence[int]], start: int) -> dict[int, int]:
    distance, queue = {start: 0}, [start]
    for node in queue:  # the queue grows during the iteration
        for neighbour in neighbours[node]:
            if neighbour not in distance:
                distance[neighbour] = distance[node] + 1
                queue.append(neighbour)
    return distance


@dataclass(frozen=True)
class GraphQuestion:
    """Is ``root`` a ``target`` or a ``distractor``? Both are sinks; only the target can be reached from the root."""

    graph: Graph
    root: int
    target: int
    distractor: int

    def as_dict(self, symbols: Sequence[str]) -> dict[str, Any]:
        """The graph, under the keys of the published ProsQA files."""
        return {
            "idx_to_symbol": list(symbols),
            "edges": [list(edge) for edge in self.graph.edges],
            "root": self.root,
            "target": self.target,
            "neg_target": self.distractor,
        }


def word(question: GraphQuestion, rng: random.Random, words: Sequence[str] = CONCEPTS) -> Problem:
    """Writes the question as sentences, with random names.

    Sources get names of persons, and other nodes get concepts from ``words``. The order of sentences and options is
    random. The steps are a shortest path, drawn uniformly.
    """
    graph = question.graph
    sources = set(graph.sources)
    names, others = rng.sample(NAMES, len(sources)), rng.sample(words, graph.num_nodes - len(sources))
    symbols = [names.pop() if node in sources else others.pop() for node in range(graph.num_nodes)]

    def sentence(parent: int, child: int) -> str:
        subject = symbols[parent] if parent in sources else f"Every {symbols[parent]}"
        return f"{subject} is a {symbols[child]}."

    context = [sentence(*edge) for edge in graph.edges]
    rng.shuffle(context)
    options = [symbols[question.target], symbols[question.distractor]]
    rng.shuffle(options)
    path = graph.draw_shortest_path(rng, question.root, question.target)
    root = symbols[question.root]
    return Problem(
        question=" ".join([*context, f"Is {root} a {options[0]} or {options[1]}?"]),
        steps=tuple(sentence(*edge) for edge in pairwise(path)),
        answer=f"{root} is a {symbols[question.target]}.",
        extra=question.as_dict(symbols),
    )


def word_as_arrows(question: GraphQuestion, rng: random.Random, symbols: Sequence[str]) -> Problem:
    """Writes the question with one word per edge: ``3>7 1>4 7>5 … From 3 to 5 or 4?``.

    The steps of this example are ``3>7`` and ``7>5``, the answer is ``5``. Each node gets a random symbol of its own.
    Edges and options are in random order, and the shortest path is drawn, as in `word`.
    """
    graph = question.graph
    names = rng.sample(symbols, graph.num_nodes)
    context = [arrow(names[parent], names[child]) for parent, child in graph.edges]
    rng.shuffle(context)
    options = [names[question.target], names[question.distractor]]
    rng.shuffle(options)
    path = graph.draw_shortest_path(rng, question.root, question.target)
    return Problem(
        question=" ".join([*context, f"From {names[question.root]} to {options[0]} or {options[1]}?"]),
        steps=tuple(arrow(names[parent], names[child]) for parent, child in pairwise(path)),
        answer=names[question.target],
        extra=question.as_dict(names),
    )


def arrow(parent: str, child: str) -> str:
    """An edge, written as one word."""
    return f"{parent}>{child}"
