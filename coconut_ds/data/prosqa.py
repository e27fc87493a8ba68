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
from collections.abc import Collection, Container, Iterator
from dataclasses import dataclass, field

from coconut_ds.data.graphs import NAMES, Edge, Graph, GraphQuestion, word
from coconut_ds.data.problem import Problem

NUM_NODES = 28
"""Number of nodes to draw; nodes without any edge are deleted at the end."""
MEAN_PARENTS = 1.5
"""Mean of the Poisson distribution of the number of parents."""
FAMILY_SHARES = (0.35, 0.45)
"""Probabilities of drawing parents only from label 1, and only from label 2; otherwise from all earlier nodes."""
DEPTH_WEIGHT = 1.5
"""A candidate at depth d is drawn as a parent with weight DEPTH_WEIGHT * d + 1."""
EDGES_PER_NODE = 1.57
"""Mean number of edges per node that ``MEAN_PARENTS`` gives, without nodes that have no edge."""
DEPTHS = range(3, 7)
"""Accepted lengths of the shortest path from root to target, in edges."""


@dataclass
class _Growth:
    """A graph under construction, with each node's label and its depth (distance to its root; 0 for labels 0 and 3)."""

    labels: list[int] = field(default_factory=lambda: [1, 2])
    depths: list[int] = field(default_factory=lambda: [0, 0])
    edges: list[Edge] = field(default_factory=list)

    def add_node(self, rng: random.Random, mean_parents: float = MEAN_PARENTS) -> None:
        wanted = _poisson(rng, mean_parents)
        parents = self._draw_parents(rng, wanted)
        node, label = len(self.labels), 0
        for parent in parents:
            label |= self.labels[parent]
        own = [self.depths[parent] for parent in parents if label in (1, 2) and self.labels[parent] == label]
        self.edges += [(parent, node) for parent in parents]
        self.labels.append(label)
        self.depths.append(min(own) + 1 if own else 0)

    @property
    def sinks(self) -> list[int]:
        """Nodes without children that descend from one root only."""
        parents = {parent for parent, _ in self.edges}
        return [n for n, label in enumerate(self.labels) if n > 1 and label in (1, 2) and n not in parents]

    def question(self, target: int, distractor: int) -> GraphQuestion:
        """The question with these options. Nodes without any edge are deleted."""
        kept = sorted({node for edge in self.edges for node in edge})
        index = {node: position for position, node in enumerate(kept)}
        graph = Graph(len(kept), tuple((index[parent], index[child]) for parent, child in self.edges))
        return GraphQuestion(graph, self.labels[target] - 1, index[target], index[distractor])

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


def _ask(growth: _Growth, rng: random.Random, depths: Container[int] = DEPTHS) -> GraphQuestion | None:
    """Chooses the target, one of the deepest sinks, and the distractor, any sink of the other root.

    Returns None if the depth is not accepted or the other root has no sink.
    """
    sinks = growth.sinks
    deepest = max((growth.depths[node] for node in sinks), default=0)
    if deepest not in depths:
        return None
    target = rng.choice([node for node in sinks if growth.depths[node] == deepest])
    others = [node for node in sinks if growth.labels[node] != growth.labels[target]]
    if not others:
        return None
    return growth.question(target, rng.choice(others))


@dataclass(frozen=True)
class GraphSizes:
    """Which questions ``draw_sized`` accepts. Ranges are (smallest, largest), both inclusive."""

    num_nodes: tuple[int, int] | None = None
    """Number of nodes, drawn uniformly; None: whatever ``NUM_NODES`` drawn nodes give, as in the published files."""
    num_edges: tuple[int, int] | None = None
    """Number of edges; None: any."""
    num_hops: tuple[int, int] = (DEPTHS.start, DEPTHS.stop - 1)
    """Number of edges of a shortest path from root to target."""
    balanced: bool = False
    """Whether both options have as many ancestors and mentions, and the same chance to be the target."""


def draw_sized(rng: random.Random, sizes: GraphSizes) -> GraphQuestion | None:
    """Grows one graph as ``draw_question`` does, until it has the wanted number of nodes.

    Returns:
        The question; None if the graph cannot be asked about or has other sizes.
    """
    growth = _grown(rng, sizes)
    if growth is None or not _within(len(growth.edges), sizes.num_edges):
        return None
    question = (_ask_balanced if sizes.balanced else _ask)(growth, rng, range(sizes.num_hops[0], sizes.num_hops[1] + 1))
    # More nodes without parents than there are names of persons cannot be written as sentences.
    return question if question is not None and len(question.graph.sources) <= len(NAMES) else None


def _ask_balanced(growth: _Growth, rng: random.Random, depths: Container[int]) -> GraphQuestion | None:
    """Chooses a sink of each root, at accepted depths, with as many ancestors and mentions, then one as the target.

    The graph alone does not tell which root is asked about, so nothing but the root tells the options apart. Returns
    None if there are no such sinks.
    """
    graph = Graph(len(growth.labels), tuple(growth.edges))
    sinks = [node for node in growth.sinks if growth.depths[node] in depths]
    # A sink is mentioned once for each of its parents.
    facts = {node: (len(graph.ancestors(node)), len(graph.parents[node])) for node in sinks}
    pairs = [
        (one, other)
        for one in sinks
        for other in sinks
        if growth.labels[one] != growth.labels[other] and facts[one] == facts[other]
    ]
    return growth.question(*rng.choice(pairs)) if pairs else None


def _grown(rng: random.Random, sizes: GraphSizes) -> _Growth | None:
    """A graph with a number of nodes of the range, where a node counts if it has an edge; None if it has one more."""
    growth, mean, connected = _Growth(), MEAN_PARENTS, set[int]()
    wanted = None if sizes.num_nodes is None else rng.randint(*sizes.num_nodes)
    if wanted is not None and sizes.num_edges is not None:
        # Nodes that get no parent mostly end without an edge, so the ratio changes by less than the mean.
        mean = max(0.1, mean + 1.9 * (rng.randint(*sizes.num_edges) / wanted - EDGES_PER_NODE))
    while len(growth.labels) < NUM_NODES if wanted is None else len(connected) < wanted:
        known = len(growth.edges)
        growth.add_node(rng, mean)
        connected.update(node for edge in growth.edges[known:] for node in edge)
        if wanted is not None and len(growth.labels) > 10 * wanted:
            return None
    return growth if wanted in (None, len(connected)) else None


def _within(value: int, bounds: tuple[int, int] | None) -> bool:
    return bounds is None or bounds[0] <= value <= bounds[1]


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
