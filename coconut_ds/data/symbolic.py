"""ProsQA without sentences, with graphs as triples of symbols: the data source ``data=prosqa_symbolic``.

From "Reasoning by Superposition" (Zhu et al. 2025, arXiv 2505.12514). A question lists the edges, the two options and
the root: ``s t | s t | … [Q] a b [R] root``. Each step is the next node of a shortest path; the answer is one of the
options. With ``format: symbolic`` a sequence has one target token: a node at hop k + 1 after k thoughts, or, after the
end of the path, the target node, which follows ``[A]``. (The authors' code counts stages from 1: node k after k - 1
thoughts.)

Graphs are drawn as in `prosqa`, by default with paths of 3 or 4 edges. Each problem is a pure function of (seed, split,
epoch, index). With ``online=False`` the graphs are the same in every epoch, but each epoch renames the nodes, reorders
edges and options, and draws a new shortest path. Names are drawn at random from all symbols, because names in the order
of the nodes would reveal their depth.
"""

import random
from collections.abc import Sequence
from functools import lru_cache
from typing import ClassVar, Self

from coconut_ds.data.graphs import GraphQuestion, split_of_graph
from coconut_ds.data.problem import Problem
from coconut_ds.data.prosqa import DEPTHS, draw_question
from coconut_ds.errors import DataError
from coconut_ds.settings import DataConfig, SplitSizes


class SymbolicProsqa:
    """Problems whose nodes have the names 0 to 30."""

    symbols: ClassVar[Sequence[str]] = tuple(map(str, range(31)))

    def __init__(self, seed: int, size: SplitSizes, num_hops: tuple[int, int], online: bool) -> None:
        """Checks the settings.

        Args:
            seed: seed of all splits.
            size: number of problems of each split.
            num_hops: smallest and largest number of edges from root to target.
            online: whether training uses new graphs in each epoch.

        Raises:
            DataError: no graph has this number of hops.
        """
        if num_hops[0] < DEPTHS.start or num_hops[1] >= DEPTHS.stop:
            raise DataError(
                f"data.num_hops: found {list(num_hops)}, expected numbers from {DEPTHS.start} to {DEPTHS.stop - 1}; "
                "set for example data.num_hops=[3,4]"
            )
        self._seed, self._size, self._hops, self._online = seed, size, num_hops, online
        self._graph = lru_cache(maxsize=None)(self._draw_graph) if not online else self._draw_graph

    @classmethod
    def from_config(cls, data: DataConfig, seed: int) -> Self:
        """The source that the group ``data`` describes."""
        return cls(seed, data.size, data.num_hops, data.online)

    def train(self, epoch: int) -> list[Problem]:
        """The training problems of an epoch."""
        return [self.problem("train", epoch, index) for index in range(self._size.train)]

    def valid(self) -> list[Problem]:
        """The validation problems; the same at every call."""
        return [self.problem("valid", 0, index) for index in range(self._size.valid)]

    def test(self) -> list[Problem]:
        """The test problems; the same at every call."""
        return [self.problem("test", 0, index) for index in range(self._size.test)]

    def vocabulary(self) -> list[str]:
        """All names of nodes, and the separators."""
        return [*self.symbols, "| [Q] [R] [A]"]

    def problem(self, split: str, epoch: int, index: int) -> Problem:
        """The problem with this index."""
        question = self._graph(split, epoch if self._online else 0, index)
        return write_problem(question, random.Random(f"{self._seed}/{split}/{epoch}/{index}/written"), self.symbols)

    def _draw_graph(self, split: str, epoch: int, index: int) -> GraphQuestion:
        rng = random.Random(f"{self._seed}/{split}/{epoch}/{index}")
        while True:
            question = draw_question(rng)
            hops = question.graph.distances(question.root)[question.target]
            if self._hops[0] <= hops <= self._hops[1] and split_of_graph(question.graph) == split:
                return question


def write_problem(question: GraphQuestion, rng: random.Random, symbols: Sequence[str]) -> Problem:
    """Writes a question as symbols. Names of nodes, order of edges and options, and the shortest path are drawn."""
    graph = question.graph
    names = rng.sample(symbols, graph.num_nodes)
    edges = [f"{names[parent]} {names[child]}" for parent, child in graph.edges]
    rng.shuffle(edges)
    options = [names[question.target], names[question.distractor]]
    rng.shuffle(options)
    path = graph.draw_shortest_path(rng, question.root, question.target)
    return Problem(
        question=f"{' | '.join(edges)} [Q] {' '.join(options)} [R] {names[question.root]}",
        steps=tuple(names[node] for node in path[1:]),
        answer=names[question.target],
        extra=question.as_dict(names),
    )
