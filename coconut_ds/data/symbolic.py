"""ProsQA without words: the graph as triples of symbols, the data source ``data=prosqa_symbolic``.

Source: "Reasoning by Superposition" (Zhu et al. 2025, arXiv 2505.12514). A question is edges, the two options and the
root, ``s t | s t | … [Q] a b [R] root``; a step is the next node of a shortest path, the answer is one of the options.
With ``format: symbolic`` a sequence has one target: after k thoughts a node at hop k + 1, or, once the path is at its
end, ``[A]`` and the target. (The authors' code counts its stages from 1: node k after k - 1 thoughts.)

Graphs are those of `prosqa`, by default with paths of 3 or 4 edges. Each problem is a pure function of (seed, split,
epoch, index); graphs stay with ``online=False``, but each epoch numbers the nodes, orders edges and options, and draws
the path anew. Numbers are drawn from all symbols, so they tell nothing about depth, which an order of the nodes would.
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
    """Problems over symbols 0 to 30."""

    symbols: ClassVar[Sequence[str]] = tuple(map(str, range(31)))

    def __init__(self, seed: int, size: SplitSizes, num_hops: tuple[int, int], online: bool) -> None:
        """Refuses what cannot be drawn.

        Args:
            seed: of all splits.
            size: problems of each split.
            num_hops: smallest and largest number of edges from root to target.
            online: whether each epoch has new graphs for training.

        Raises:
            DataError: no graph has so few or so many hops.
        """
        if num_hops[0] < DEPTHS.start or num_hops[1] >= DEPTHS.stop:
            raise DataError(
                f"data.num_hops: found {list(num_hops)}, expected numbers from {DEPTHS.start} to {DEPTHS.stop - 1}; "
                "set for instance data.num_hops=[3,4]"
            )
        self._seed, self._size, self._hops, self._online = seed, size, num_hops, online
        self._graph = lru_cache(maxsize=None)(self._draw_graph) if not online else self._draw_graph

    @classmethod
    def from_config(cls, data: DataConfig, seed: int) -> Self:
        """The source that the group ``data`` describes."""
        return cls(seed, data.size, data.num_hops, data.online)

    def train(self, epoch: int) -> list[Problem]:
        """Training problems of an epoch."""
        return [self.problem("train", epoch, index) for index in range(self._size.train)]

    def valid(self) -> list[Problem]:
        """Validation problems, always the same."""
        return [self.problem("valid", 0, index) for index in range(self._size.valid)]

    def test(self) -> list[Problem]:
        """Test problems, always the same."""
        return [self.problem("test", 0, index) for index in range(self._size.test)]

    def vocabulary(self) -> list[str]:
        """All symbols and signs."""
        return [*self.symbols, "| [Q] [R] [A]"]

    def problem(self, split: str, epoch: int, index: int) -> Problem:
        """One problem."""
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
    """The question in symbols; nodes, edges, options and the shortest path in random order or choice."""
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
