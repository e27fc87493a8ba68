"""Directed acyclic graphs, and questions about them in the words of ProsQA. Shared by `prosqa` and `layered`.

Does: reachability, shortest paths (counted, and drawn evenly), a fingerprint that renumbering the nodes does not
change, and the wording. Does not: make graphs. An edge (u, v) reads "u is a v" and leads to a higher index. Every draw
comes from the ``random.Random`` passed in, so that a problem is a pure function of its seed.

Sentences, names and concepts are those of the published ProsQA files (Hao et al. 2024, arXiv:2412.06769). Arrows say
the same with one word an edge, for models that are too small to learn which words of a sentence belong together.
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
    """The first ``count`` concepts: the published 38, then invented ones of the same sound."""
    invented = (f"{a}{b}{c}pus" for a, b, c in product("bdfghjklmnprstvwyz", "aeiou", "ckdfgstvxz"))
    words = (*CONCEPTS, *islice(invented, max(0, count - len(CONCEPTS))))[:count]
    assert len(words) == count, f"{count} concepts wanted, {len(words)} can be named"
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
        """Edges of the shortest path from ``start`` to each node that it reaches, itself (0) included."""
        return _breadth_first(self.children, start)

    def ancestors(self, node: int) -> set[int]:
        """All nodes that reach ``node``, without itself."""
        return set(_breadth_first(self.parents, node)) - {node}

    def heights(self, longest: bool = False) -> list[int]:
        """Edges from each node to the nearest sink below it, or of the longest way to one.

        Both are called height: arXiv 2412.06769 says "longest distance to any leaf" in figure 7 and "shortest" in
        section 5.4.
        """
        heights = [0] * self.num_nodes
        choose = max if longest else min
        for node in self._children_first():
            if self.children[node]:
                heights[node] = 1 + choose(heights[child] for child in self.children[node])
        return heights

    def _children_first(self) -> list[int]:
        """All nodes, each after its children."""
        order: list[int] = []
        left = [len(below) for below in self.children]
        ready = [node for node, count in enumerate(left) if count == 0]
        while ready:
            order.append(ready.pop())
            for parent in self.parents[order[-1]]:
                left[parent] -= 1
                if left[parent] == 0:
                    ready.append(parent)
        assert len(order) == self.num_nodes, "the graph has no cycle"
        return order

    def shortest_path_counts(self, start: int) -> dict[int, int]:
        """How many shortest paths lead from ``start`` to each node that it reaches."""
        distance = self.distances(start)
        counts = {start: 1}
        for node in distance:  # in order of distance
            if node != start:
                counts[node] = sum(counts[parent] for parent in self._before(node, distance))
        return counts

    def draw_shortest_path(self, rng: random.Random, start: int, goal: int) -> list[int]:
        """One of the shortest paths from ``start`` to ``goal``, each as likely as any other."""
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
        """A digest that two graphs share if one is the other renumbered.

        Colour refinement: a node's colour is its own with those of its parents and children, until no more colours
        appear. Some different graphs share a digest too, so equal digests mean "perhaps the same", never "different".
        """
        colours, history, num_colours = [0] * self.num_nodes, [], 0
        while True:
            signatures = [
                (colours[node], sorted(colours[p] for p in self.parents[node]), sorted(colours[c] for c in below))
                for node, below in enumerate(self.children)
            ]
            history.append(sorted(signatures))
            table = [entry for i, entry in enumerate(history[-1]) if i == 0 or entry != history[-1][i - 1]]
            if len(table) == num_colours:
                return hashlib.sha256(repr(history).encode()).hexdigest()
            rank = {repr(entry): colour for colour, entry in enumerate(table)}
            colours, num_colours = [rank[repr(signature)] for signature in signatures], len(table)


@lru_cache(maxsize=4096)  # small graphs come again and again, and their fingerprints cost most of a problem
def split_of_graph(graph: Graph) -> str:
    """The one split in which this graph may stand: 80 % train, 10 % valid, 10 % test."""
    return _split(graph.fingerprint)


def split_of_problem(problem: Problem) -> str:
    """The one split in which this problem may stand, by its named edges and its question, in whatever order.

    For graphs so small that there are few: these come again in other splits, but with other names.
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
    for node in queue:  # grows while it is read
        for neighbour in neighbours[node]:
            if neighbour not in distance:
                distance[neighbour] = distance[node] + 1
                queue.append(neighbour)
    return distance


@dataclass(frozen=True)
class GraphQuestion:
    """Is ``root`` a ``target`` or a ``distractor``? It reaches only the target; both are sinks."""

    graph: Graph
    root: int
    target: int
    distractor: int

    def as_dict(self, symbols: Sequence[str]) -> dict[str, Any]:
        """The graph in the keys of the published ProsQA files."""
        return {
            "idx_to_symbol": list(symbols),
            "edges": [list(edge) for edge in self.graph.edges],
            "root": self.root,
            "target": self.target,
            "neg_target": self.distractor,
        }


def word(question: GraphQuestion, rng: random.Random, words: Sequence[str] = CONCEPTS) -> Problem:
    """The question in words: sources get names of persons, other nodes concepts out of ``words``, both at random.

    Sentences stand in random order, as do the two options; the steps are one shortest path, drawn evenly.
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
    """The question with one word an edge: ``3>7 1>4 7>5 … From 3 to 5 or 4?``, steps ``3>7`` and ``7>5``, answer ``5``.

    Nodes get different ``symbols`` at random; edges and options stand in random order, as in `word`.
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
    """An edge as one word."""
    return f"{parent}>{child}"
