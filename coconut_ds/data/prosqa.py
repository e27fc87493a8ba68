"""Generates ProsQA problems: is a person one of two concepts, given a directed acyclic graph of "is a" sentences?

The statistics of the problems match those of the published files (`graph_stats` measures them), but the problems are
different ones. `preprocessing/prosqa.py` writes the files.

Source: Hao et al. 2024, arXiv:2412.06769, Appendix A.2, Algorithm 1. The printed algorithm does not specify the number
of nodes or which graphs are accepted, and its paths are shorter than those of the published data. The constants below
and the choice of the target were fitted to the published problems. A node's label is 1 if it descends only from root 0,
2 if only from root 1, 3 if from both, and 0 if from neither.

Cost: about 0.5 ms per problem.
"""

import math
import random
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field

from coconut_ds.data.graphs import Edge, Graph, GraphQuestion, word
from coconut_ds.data.problem import Problem

NUM_NODES = 28
"""Number of nodes to draw; nodes without any edge are deleted at the end."""
MEAN_PARENTS = 1.5
"""Mean of the Poisson distribution of the number of parents."""
FAMILY_SHARES = (0.35, 0.45)
"""Probabilities of drawing parents only from label 1, and only from label 2; otherwise from all earlier nodes."""
DEPTH_WEIGHT = 1.5
"""A candidate at depth d is drawn as a parent with weight DEPTH_WEIGHT * d + 1."""
DEPTHS = range(3, 7)
"""Accepted lengths of the shortest path from root to target, in edges."""


@dataclass
class _Growth:
    """A graph under construction, with each node's label and its depth (distance to its root; 0 for labels 0 and 3)."""

    labels: list[int] = field(default_factory=lambda: [1, 2])
    depths: list[int] = field(default_factory=lambda: [0, 0])
    edges: list[Edge] = field(default_factory=list)

    def add_node(self, rng: random.Random) -> None:
        wanted = _poisson(rng, MEAN_PARENTS)
        parents = self._draw_parents(rng, wanted)
        node, label = len(self.labels), 0
        for parent in parents:
            label |= self.labels[parent]
        own = [self.depths[parent] for parent in parents if label in (1, 2) and self.labels[parent] == label]
        self.edges += [(parent, node) for parent in parents]
        self.labels.append(label)
        self.depths.append(min(own) + 1 if own else 0)

    def _draw_parents(self, rng: random.Random, wanted: int) -> list[int]:
        """Up to ``wanted`` distinct earlier nodes, drawn one after the other."""
        share, candidates = rng.random(), list(range(len(self.labels)))
        if share < sum(FAMILY_SHARES):
            label = 1 if share < FAMILY_SHARES[0] else 2
            candidates = [node for node in candidates if self.labels[node] == label]
        parents: list[int] = []
        while candidates and len(parents) < wanted:
            weights = [DEPTH_WEIGHT * self.depths[node] + 1 for node in candidates]
            parents += rng.choices(candidates, weights)
            candidates.remove(parents[-1])
        return parents


def _poisson(rng: random.Random, mean: float) -> int:
    count, product, floor = 0, rng.random(), math.exp(-mean)
    while product > floor:
        product *= rng.random()
        count += 1
    return count


def draw_question(rng: random.Random) -> GraphQuestion:
    """Draws a graph with root, target and distractor until it is accepted (about 1.1 draws on average)."""
    while True:
        growth = _Growth()
        while len(growth.labels) < NUM_NODES:
            growth.add_node(rng)
        question = _ask(growth, rng)
        if question is not None:
            return question


def _ask(growth: _Growth, rng: random.Random) -> GraphQuestion | None:
    """Chooses the target, one of the deepest sinks, and the distractor, any sink of the other root.

    Returns None if the depth is not accepted or the other root has no sink.
    """
    parents = {parent for parent, _ in growth.edges}
    sinks = [n for n, label in enumerate(growth.labels) if n > 1 and label in (1, 2) and n not in parents]
    deepest = max((growth.depths[node] for node in sinks), default=0)
    if deepest not in DEPTHS:
        return None
    target = rng.choice([node for node in sinks if growth.depths[node] == deepest])
    others = [node for node in sinks if growth.labels[node] != growth.labels[target]]
    if not others:
        return None
    distractor = rng.choice(others)
    kept = sorted({node for edge in growth.edges for node in edge})
    index = {node: position for position, node in enumerate(kept)}
    graph = Graph(len(kept), tuple((index[parent], index[child]) for parent, child in growth.edges))
    return GraphQuestion(graph, growth.labels[target] - 1, index[target], index[distractor])


def generate_problem(rng: random.Random) -> Problem:
    """Draws one problem, a pure function of the state of ``rng``."""
    return word(draw_question(rng), rng)


def generate_split(seed: int, split: str, size: int, exclude: Collection[str] = ()) -> Iterator[tuple[Problem, str]]:
    """Yields ``size`` problems, each with the fingerprint of its graph.

    No fingerprint occurs twice or is in ``exclude``. Problem i has its own seed, so a smaller split is the beginning of
    a larger one.
    """
    taken = set(exclude)
    for index in range(size):
        tries = 0
        while True:
            rng = random.Random(f"{seed}/{split}/{index}/{tries}")
            question = draw_question(rng)
            if question.graph.fingerprint not in taken:
                break
            tries += 1
        taken.add(question.graph.fingerprint)
        yield word(question, rng), question.graph.fingerprint
