"""Layered graphs of any size with questions as in ProsQA, generated on the fly: the data source ``data=synthetic``.

A problem is a pure function of (seed, split, epoch, index). Validation and test problems never change. No graph occurs
in two splits, even with other node numbers, because its fingerprint decides its split. (With ``split_by=problems``, for
settings with few different graphs, this holds for problems instead of graphs.) Within one split a graph may occur more
than once. Questions are written as sentences, triples or with one word per edge (`graph_writing`).

Layer 0 of a graph has two persons: the root of the question and its rival. Each other node belongs to the family of one
person, and then its parents do too, or is mixed, with any parents. Each node below layer 0 has a parent in the layer
above, and each node above the last layer has a child in the layer below. Further edges may skip layers; long edges are
rarer than short ones, and paths from root to target differ in length. In graphs of three or more layers no edge leads
from a person to the last layer, so a solution takes at least two steps. The target is any sink that can be reached from
the root but not from the rival; the distractor is any sink that cannot be reached from the root. Root and rival are
exchanged with probability 0.5, so neither the number of ancestors nor the number of mentions reveals the answer.

Cost: about 1 ms per training problem, and 10 ms per validation or test problem.
"""

import random
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import combinations, pairwise
from typing import Self

from coconut_ds.data.drawing import draw_all
from coconut_ds.data.graph_writing import graph_writer
from coconut_ds.data.graphs import Edge, Graph, GraphQuestion, split_of_graph, split_of_problem
from coconut_ds.data.problem import Problem
from coconut_ds.errors import DataError
from coconut_ds.settings import DataConfig

SPLITS = ("train", "valid", "test")
MIXED = 2
"""The number of the mixed family; families 0 and 1 are those of nodes 0 and 1."""
FAMILY_WEIGHTS = (0.35, 0.35, 0.30)
"""Probabilities of the families 0, 1 and mixed."""
SKIP_POWER = 2.0
"""An additional edge across d layers is drawn with weight d ** -SKIP_POWER."""
MAX_TRIES = 1000

NUM_NODES, NUM_LAYERS, NUM_EDGES = (16, 24), (4, 6), (24, 40)
"""The ranges of a data group that names none."""

Layers = list[list[int]]
"""The family of each node, layer by layer. Nodes are numbered in this order."""


def _draw_layers(rng: random.Random, num_nodes: int, num_layers: int) -> Layers:
    """Draws the families of all nodes.

    Each layer has at least one node of each person's family. Families never get smaller from layer to layer, so a graph
    of n nodes can be connected with n - 2 edges.
    """
    counts = [[1] * num_layers, [1] * num_layers, [0] * num_layers]
    for family in rng.choices(range(3), FAMILY_WEIGHTS, k=num_nodes - 2 * num_layers):
        counts[family][rng.randrange(1, num_layers)] += 1
    for family in range(3):
        counts[family][1:] = sorted(counts[family][1:])
    return [[family for family in range(3) for _ in range(counts[family][layer])] for layer in range(num_layers)]


def _pairs(layers: Layers) -> dict[Edge, int]:
    """Every edge that the layers permit, with the number of layers it leads down."""
    nodes = [(layer, family) for layer, families in enumerate(layers) for family in families]
    pairs, longest = {}, max(1, len(layers) - 2)
    for parent, child in combinations(range(len(nodes)), 2):
        down = nodes[child][0] - nodes[parent][0]
        if 0 < down <= longest and nodes[child][1] in (MIXED, nodes[parent][1]):
            pairs[parent, child] = down
    return pairs


def _draw_tree(rng: random.Random, layers: Layers) -> set[Edge]:
    """Draws one edge to each node below layer 0. Each node above the last layer gets a child of its own family."""
    edges, start = set(), 0
    for above, below in pairwise(layers):
        middle = start + len(above)
        for family in range(3):
            own = [start + i for i, kind in enumerate(above) if kind == family]
            possible = list(range(start, middle)) if family == MIXED else own
            heirs = [middle + i for i, kind in enumerate(below) if kind == family]
            parents = own + rng.choices(possible, k=len(heirs) - len(own))
            rng.shuffle(parents)
            edges |= set(zip(parents, heirs, strict=True))
        start = middle
    return edges


def _draw_graph(rng: random.Random, num_nodes: int, num_layers: int, num_edges: int) -> Graph:
    """Draws layers until they permit ``num_edges`` edges, then a tree, then additional edges."""
    for _ in range(MAX_TRIES):
        layers = _draw_layers(rng, num_nodes, num_layers)
        pairs = _pairs(layers)
        if len(pairs) >= num_edges:
            break
    else:
        raise DataError(
            f"data=synthetic: no {num_nodes} nodes in {num_layers} layers with {num_edges} edges found in {MAX_TRIES} "
            "tries; expected ranges that leave room; lower the second number of data.num_edges"
        )
    edges = _draw_tree(rng, layers)
    # The edges with the largest u ** (1 / weight), u uniform, are a weighted sample without replacement.
    keys = {edge: rng.random() ** (down**SKIP_POWER) for edge, down in pairs.items() if edge not in edges}
    edges |= set(sorted(keys, key=keys.__getitem__, reverse=True)[: num_edges - len(edges)])
    return Graph(num_nodes, tuple(sorted(edges, key=lambda edge: (edge[1], edge[0]))))


def _ask(rng: random.Random, graph: Graph) -> GraphQuestion:
    root, rival = rng.sample((0, 1), 2)
    reached, reached_by_rival = graph.distances(root), graph.distances(rival)
    sinks = graph.sinks
    # Never empty, because the last layer has a node of each family.
    target = rng.choice([node for node in sinks if node in reached and node not in reached_by_rival])
    distractor = rng.choice([node for node in sinks if node not in reached])
    return GraphQuestion(graph, root, target, distractor)


class LayeredGraphs:
    """Problems on layered graphs. Ranges are (smallest, largest), both inclusive, and are drawn from uniformly."""

    def __init__(
        self,
        seed: int,
        size: Mapping[str, int],
        num_nodes: tuple[int, int],
        num_layers: tuple[int, int],
        num_edges: tuple[int, int],
        online: bool,
        wording: str = "sentences",
        split_by: str = "graphs",
        *,
        num_hops: tuple[int, int] | None = None,
        num_symbols: int | None = None,
        nodes_as_steps: bool = False,
    ) -> None:
        """Checks the settings.

        Args:
            seed: seed of all splits.
            size: number of problems of the splits train (per epoch), valid and test.
            num_nodes: range of the number of nodes.
            num_layers: range of the number of layers, including that of the persons.
            num_edges: range of the number of edges.
            online: whether training uses new problems in each epoch, instead of those of epoch 0.
            wording: sentences, triples or arrows (``graph_writing``); all describe the same graphs.
            split_by: what may occur in only one split: graphs, however their nodes are named, or problems.
            num_hops: range of the number of edges from root to target; None: any number.
            num_symbols: number of names that nodes can have (``graph_writing.graph_writer``); None: as many as needed.
            nodes_as_steps: whether the steps of arrows are nodes (``data.format=symbolic``) instead of edges.

        Raises:
            DataError: some numbers of the ranges cannot be combined, or give too few graphs for three splits.
        """
        self._seed, self._size, self._online = seed, dict(size), online
        self._ranges, self._hops = (num_nodes, num_layers, num_edges), num_hops
        self._by_graphs = split_by == "graphs"
        self._kept: dict[str, list[Problem]] = {}
        _check_form(self._size, num_nodes, num_layers, num_edges)
        self._writer = graph_writer(wording, nodes_as_steps, num_nodes, num_symbols)
        _check_fit(num_nodes, num_layers, num_edges)
        for split in SPLITS:
            if self._size[split]:
                self.problem(split, 0, 0)

    @classmethod
    def from_config(cls, data: DataConfig, seed: int) -> Self:
        """The source that the group ``data`` describes."""
        ranges = (data.num_nodes or NUM_NODES, data.num_layers or NUM_LAYERS, data.num_edges or NUM_EDGES)
        return cls(
            seed,
            data.size.model_dump(),
            *ranges,
            data.online,
            data.graph_wording,
            data.split_by,
            num_hops=data.num_hops,
            num_symbols=data.num_symbols,
            nodes_as_steps=data.text_format.one_token,
        )

    def train(self, epoch: int) -> list[Problem]:
        """The training problems of an epoch; those of epoch 0 unless ``online``."""
        return self._draw("train", epoch) if self._online else self._keep("train")

    def valid(self) -> list[Problem]:
        """The validation problems; the same at every call."""
        return self._keep("valid")

    def test(self) -> list[Problem]:
        """The test problems; the same at every call."""
        return self._keep("test")

    def vocabulary(self) -> list[str]:
        """Texts that contain every word of any problem, with each punctuation mark that can follow it."""
        return self._writer.vocabulary()

    def problem(self, split: str, epoch: int, index: int) -> Problem:
        """Draws the problem with this index, and draws again while the result belongs to another split."""
        for count in range(MAX_TRIES):
            rng = random.Random(f"{self._seed}/{split}/{epoch}/{index}" + (f"/{count}" if count else ""))
            graph = _draw_graph(rng, *(rng.randint(*bounds) for bounds in self._ranges))
            if self._by_graphs and split_of_graph(graph) != split:
                continue
            question = _ask(rng, graph)
            if not self._has_hops(question):
                continue
            problem = self._writer.write(question, rng)
            if self._by_graphs or split_of_problem(problem) == split:
                return problem
        nodes, layers, edges = map(list, self._ranges)
        hops = f", data.num_hops={list(self._hops)}" if self._hops else ""
        raise DataError(
            f"data=synthetic: data.num_nodes={nodes}, data.num_layers={layers}, data.num_edges={edges}{hops} give too "
            f"few different graphs: {MAX_TRIES} draws gave none for the split '{split}', expected about one in ten; "
            f"widen a range, for example data.num_nodes=[{nodes[0]},{nodes[1] + 8}] with suitable data.num_edges, or "
            "set data.split_by=problems"
        )

    def _has_hops(self, question: GraphQuestion) -> bool:
        if self._hops is None:
            return True
        return self._hops[0] <= question.graph.distances(question.root)[question.target] <= self._hops[1]

    def _draw(self, split: str, epoch: int) -> list[Problem]:
        return draw_all(partial(self.problem, split, epoch), self._size[split], split)

    def _keep(self, split: str) -> list[Problem]:
        if split not in self._kept:
            self._kept[split] = self._draw(split, 0)
        return self._kept[split]


def _check_form(size: Mapping[str, int], *ranges: Sequence[int]) -> None:
    if sorted(size) != sorted(SPLITS) or min(size.values()) < 0:
        raise DataError(f"data.size: found {dict(size)}, expected train, valid and test, each at least 0")
    for name, bounds in zip(("num_nodes", "num_layers", "num_edges"), ranges, strict=True):
        if len(bounds) != 2 or bounds[0] > bounds[1]:
            raise DataError(
                f"data.{name}: found {list(bounds)}, expected [smallest, largest]; set for example "
                f"data.{name}=[{min(bounds, default=8)},{max(bounds, default=8)}]"
            )


def _check_fit(num_nodes: Sequence[int], num_layers: Sequence[int], num_edges: Sequence[int]) -> None:
    """Checks that all numbers of the three ranges can be combined, because each is drawn independently."""
    if num_layers[0] < 2:
        raise DataError(
            f"data.num_layers: found {list(num_layers)}, expected at least 2 (persons and sinks); "
            f"set data.num_layers=[2,{max(2, num_layers[1])}]"
        )
    if num_nodes[0] < 2 * num_layers[1]:
        raise DataError(
            f"data.num_nodes: found {list(num_nodes)}, expected at least {2 * num_layers[1]}, two for each of up "
            f"to {num_layers[1]} layers (data.num_layers={list(num_layers)}); set "
            f"data.num_nodes=[{2 * num_layers[1]},{max(num_nodes[1], 2 * num_layers[1])}] or fewer layers"
        )
    if num_edges[0] < num_nodes[1] - 2:
        least = num_nodes[1] - 2
        raise DataError(
            f"data.num_edges: found {list(num_edges)}, expected at least {least}, one for each node but the two "
            f"persons (data.num_nodes={list(num_nodes)}); set data.num_edges=[{least},{max(least, num_edges[1])}]"
        )
    for layers in range(num_layers[0], num_layers[1] + 1):
        rng = random.Random(layers)  # fixed, so that the answer is the same each time
        most = max(len(_pairs(_draw_layers(rng, num_nodes[0], layers))) for _ in range(100))
        if num_edges[1] > most:
            narrower = f"set data.num_edges=[{min(num_edges[0], most)},{most}], or "
            remedy = narrower if most >= num_nodes[1] - 2 else ""  # else the largest graph would lack edges
            raise DataError(
                f"data.num_edges: found {list(num_edges)}, expected at most {most}, all that {num_nodes[0]} nodes "
                f"in {layers} layers permit (data.num_nodes={list(num_nodes)}, data.num_layers={list(num_layers)}); "
                f"{remedy}raise the first number of data.num_nodes"
            )
