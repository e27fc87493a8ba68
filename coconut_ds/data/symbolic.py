"""ProsQA's graphs, drawn during the run and written as symbols: the data source ``data=prosqa_symbolic``.

From "Reasoning by Superposition" (Zhu et al. 2025, arXiv 2505.12514). A question lists the edges, the two options and
the root: ``s t | s t | … [Q] a b [R] root``. Each step is the next node of a shortest path; the answer is one of the
options. With ``format: symbolic`` a sequence has one target token: a node at hop k + 1 after k thoughts, or, after the
end of the path, the target node, which follows ``[A]``. (The authors' code counts stages from 1: node k after k - 1
thoughts.) The same graphs can be written with one word per edge or as sentences (`graph_writing`).

Graphs are drawn as in `prosqa`, by default with paths of 3 or 4 edges and the sizes of the published files. Each
problem is a pure function of (seed, split, epoch, index). With ``online=False`` the graphs are the same in every epoch,
but each epoch renames the nodes, reorders edges and options, and draws a new shortest path. Names are drawn at random
from all symbols, because names in the order of the nodes would reveal their depth.
"""

import random
from functools import lru_cache, partial
from typing import Self

from coconut_ds.data.drawing import draw_all
from coconut_ds.data.graph_writing import GraphWriter, graph_writer
from coconut_ds.data.graphs import GraphQuestion, split_of_graph, split_of_problem
from coconut_ds.data.problem import Problem
from coconut_ds.data.prosqa import DEPTHS, NUM_NODES, GraphSizes, draw_question, draw_sized
from coconut_ds.errors import DataError
from coconut_ds.settings import DataConfig, SplitSizes

NUM_HOPS = (3, 4)
"""The number of hops of a data group that names none."""
NUM_SYMBOLS = 31
"""The number of symbols of a data group that names none, unless its graphs are larger."""
MAX_TRIES = 20_000
"""How many graphs are drawn, at about 0.5 ms each, before sizes are refused."""


class SymbolicProsqa:
    """Problems on ProsQA's graphs."""

    def __init__(
        self,
        seed: int,
        size: SplitSizes,
        num_hops: tuple[int, int],
        online: bool,
        *,
        num_nodes: tuple[int, int] | None = None,
        num_edges: tuple[int, int] | None = None,
        balanced: bool = False,
        split_by: str = "graphs",
        wording: str = "triples",
        num_symbols: int | None = None,
        nodes_as_steps: bool = True,
    ) -> None:
        """Checks the settings.

        Args:
            seed: seed of all splits.
            size: number of problems of each split.
            num_hops: smallest and largest number of edges from root to target.
            online: whether training uses new graphs in each epoch.
            num_nodes: smallest and largest number of nodes; None: as in the published files, about 23.
            num_edges: smallest and largest number of edges; None: any.
            balanced: whether the options have equal numbers of ancestors and mentions.
            split_by: what may occur in only one split: graphs, however their nodes are named, or problems.
            wording: triples, arrows or sentences (`graph_writing`); all describe the same graphs.
            num_symbols: number of names that nodes can have; None: 31, or as many as needed.
            nodes_as_steps: whether the steps of arrows are nodes (``data.format=symbolic``) instead of edges.

        Raises:
            DataError: no graph has these sizes, or there are too few names.
        """
        self._sizes = GraphSizes(num_nodes, num_edges, num_hops, balanced)
        self._sized = self._sizes != GraphSizes(num_hops=num_hops)
        if num_nodes is None and num_edges is None and (num_hops[0] < DEPTHS.start or num_hops[1] >= DEPTHS.stop):
            raise DataError(
                f"data.num_hops: found {list(num_hops)}, expected numbers from {DEPTHS.start} to {DEPTHS.stop - 1}; "
                "set for example data.num_hops=[3,4], or data.num_nodes for graphs of other sizes"
            )
        self._seed, self._size, self._online = seed, size, online
        self._by_graphs = split_by == "graphs"
        self._writer = _writer(wording, nodes_as_steps, num_nodes, num_symbols)
        self._graph = lru_cache(maxsize=None)(self._draw_graph) if not online else self._draw_graph
        if self._sized:
            # At once, instead of in a later phase of a run.
            self.problem("train", 0, 0)

    @classmethod
    def from_config(cls, data: DataConfig, seed: int) -> Self:
        """The source that the group ``data`` describes."""
        return cls(
            seed,
            data.size,
            data.num_hops or NUM_HOPS,
            data.online,
            num_nodes=data.num_nodes,
            num_edges=data.num_edges,
            balanced=data.balanced,
            split_by=data.split_by,
            wording=data.graph_wording,
            num_symbols=data.num_symbols,
            nodes_as_steps=data.text_format.one_token,
        )

    def train(self, epoch: int) -> list[Problem]:
        """The training problems of an epoch."""
        return draw_all(partial(self.problem, "train", epoch), self._size.train, "train")

    def valid(self) -> list[Problem]:
        """The validation problems; the same at every call."""
        return draw_all(partial(self.problem, "valid", 0), self._size.valid, "valid")

    def test(self) -> list[Problem]:
        """The test problems; the same at every call."""
        return draw_all(partial(self.problem, "test", 0), self._size.test, "test")

    def vocabulary(self) -> list[str]:
        """Texts that contain every word of any problem, with each punctuation mark that can follow it."""
        return self._writer.vocabulary()

    def problem(self, split: str, epoch: int, index: int) -> Problem:
        """The problem with this index. Names are drawn again while the problem belongs to another split."""
        question = self._graph(split, epoch if self._online else 0, index)
        for count in range(MAX_TRIES):
            again = f"/{count}" if count else ""
            rng = random.Random(f"{self._seed}/{split}/{epoch}/{index}/written{again}")
            problem = self._writer.write(question, rng)
            if self._by_graphs or split_of_problem(problem) == split:
                return problem
        raise self._too_few(split)

    def _draw_graph(self, split: str, epoch: int, index: int) -> GraphQuestion:
        rng = random.Random(f"{self._seed}/{split}/{epoch}/{index}")
        for _ in range(MAX_TRIES):
            question = draw_sized(rng, self._sizes) if self._sized else self._draw_published(rng)
            if question is not None and (not self._by_graphs or split_of_graph(question.graph) == split):
                return question
        raise self._too_few(split)

    def _draw_published(self, rng: random.Random) -> GraphQuestion | None:
        question, hops = draw_question(rng), self._sizes.num_hops
        return question if hops[0] <= question.graph.distances(question.root)[question.target] <= hops[1] else None

    def _too_few(self, split: str) -> DataError:
        given = {
            "num_nodes": self._sizes.num_nodes,
            "num_edges": self._sizes.num_edges,
            "num_hops": self._sizes.num_hops,
        }
        found = ", ".join(f"data.{key}={list(bounds)}" for key, bounds in given.items() if bounds is not None)
        found += ", data.balanced=true" if self._sizes.balanced else ""
        return DataError(
            f"data=prosqa_symbolic: {found} give too few different graphs: {MAX_TRIES:,} draws gave none for the split "
            f"'{split}'; graphs have about 1.6 edges per node, and paths of 3 to 4 hops need 12 nodes or more; widen a "
            "range, or set data.split_by=problems"
        )


def _writer(
    wording: str, nodes_as_steps: bool, num_nodes: tuple[int, int] | None, num_symbols: int | None
) -> GraphWriter:
    nodes = num_nodes or (4, NUM_NODES)
    if num_symbols is None and wording != "sentences":
        num_symbols = max(NUM_SYMBOLS, nodes[1])
    return graph_writer(wording, nodes_as_steps, nodes, num_symbols)
