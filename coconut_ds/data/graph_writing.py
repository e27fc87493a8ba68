"""Writes questions about graphs as text: as sentences, as triples of symbols, or with one word per edge.

A writer knows all names that a node can have, so its vocabulary is the same for graphs of all sizes. Names of nodes,
order of edges and options, and the shortest path that becomes the steps are drawn at random.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import permutations
from typing import Protocol

from coconut_ds.data.graphs import (
    CONCEPTS,
    MAX_CONCEPTS,
    NAMES,
    GraphQuestion,
    arrow,
    concepts,
    word,
    word_as_arrows,
)
from coconut_ds.data.problem import Problem
from coconut_ds.errors import DataError

MAX_SYMBOLS = 64
"""Maximum number of symbols with ``wording=arrows``, where each pair of symbols is a word of the vocabulary."""


class GraphWriter(Protocol):
    """One way to write questions about graphs."""

    def write(self, question: GraphQuestion, rng: random.Random) -> Problem:
        """The question as a problem."""

    def vocabulary(self) -> list[str]:
        """Texts that contain every word of any problem, with each punctuation mark that can follow it."""


@dataclass(frozen=True)
class Sentences:
    """The sentences of ProsQA (``graphs.word``)."""

    concepts: Sequence[str]
    """Names of nodes that have parents. Others have the names of persons."""

    def write(self, question: GraphQuestion, rng: random.Random) -> Problem:
        """The question as a problem."""
        return word(question, rng, self.concepts)

    def vocabulary(self) -> list[str]:
        """Texts that contain every word of any problem, with each punctuation mark that can follow it."""
        one = self.concepts[0]
        persons = [f"{name} is a {one}. Is {name} a {one} or {one}?" for name in NAMES]
        return persons + [f"Every {concept} is a {concept}. Is {NAMES[0]} a {concept}?" for concept in self.concepts]


@dataclass(frozen=True)
class Arrows:
    """One word per edge, also in the steps (``graphs.word_as_arrows``)."""

    symbols: Sequence[str]

    def write(self, question: GraphQuestion, rng: random.Random) -> Problem:
        """The question as a problem."""
        return word_as_arrows(question, rng, self.symbols)

    def vocabulary(self) -> list[str]:
        """Texts that contain every word of any problem, with each punctuation mark that can follow it."""
        return [*_pairs(self.symbols), *(f"From {symbol} to {symbol} or {symbol}?" for symbol in self.symbols)]


@dataclass(frozen=True)
class Symbols:
    """The question lists the edges, the two options and the root; each step is a node.

    ``3 7 | 1 4 | … [Q] 5 4 [R] 3``, or with one word per edge ``3>7 1>4 … [Q] 5 4 [R] 3``.
    """

    symbols: Sequence[str]
    one_word: bool = False
    """Whether an edge is one word instead of two."""

    def write(self, question: GraphQuestion, rng: random.Random) -> Problem:
        """The question as a problem."""
        graph = question.graph
        names = rng.sample(self.symbols, graph.num_nodes)
        pairs = [(names[parent], names[child]) for parent, child in graph.edges]
        edges = [arrow(*pair) if self.one_word else " ".join(pair) for pair in pairs]
        rng.shuffle(edges)
        options = [names[question.target], names[question.distractor]]
        rng.shuffle(options)
        path = graph.draw_shortest_path(rng, question.root, question.target)
        listed = (" " if self.one_word else " | ").join(edges)
        return Problem(
            question=f"{listed} [Q] {' '.join(options)} [R] {names[question.root]}",
            steps=tuple(names[node] for node in path[1:]),
            answer=names[question.target],
            extra=question.as_dict(names),
        )

    def vocabulary(self) -> list[str]:
        """All names of nodes, and the separators."""
        if self.one_word:
            return [*self.symbols, *_pairs(self.symbols), "[Q] [R] [A]"]
        return [*self.symbols, "| [Q] [R] [A]"]


def _pairs(symbols: Sequence[str]) -> list[str]:
    return [arrow(parent, child) for parent, child in permutations(symbols, 2)]


def graph_writer(
    wording: str, nodes_as_steps: bool, num_nodes: tuple[int, int], num_symbols: int | None
) -> GraphWriter:
    """The writer of a data group.

    Args:
        wording: sentences, triples or arrows.
        nodes_as_steps: whether arrows have nodes as steps (``data.format=symbolic``) instead of edges.
        num_nodes: smallest and largest number of nodes of a graph.
        num_symbols: number of names that nodes can have; None: as many as needed, and all published concepts.

    Raises:
        DataError: there are too few names for the largest graph, or more than a vocabulary can have.
    """
    _check_names(wording, num_nodes, num_symbols)
    if wording == "sentences":
        # At least two nodes have no parents: they are persons.
        return Sentences(concepts(num_symbols or max(len(CONCEPTS), num_nodes[1] - 2)))
    symbols = tuple(map(str, range(num_symbols or num_nodes[1])))
    if wording == "arrows" and not nodes_as_steps:
        return Arrows(symbols)
    return Symbols(symbols, one_word=wording == "arrows")


def _check_names(wording: str, num_nodes: tuple[int, int], num_symbols: int | None) -> None:
    sentences = wording == "sentences"
    persons = 2 if sentences else 0
    most = {"sentences": MAX_CONCEPTS, "arrows": MAX_SYMBOLS}.get(wording)
    if most is not None and num_nodes[1] - persons > most:
        reason = "(there are no more words)" if sentences else "with data.wording=arrows (each pair of nodes is a word)"
        other = "triples" if sentences else "sentences"
        raise DataError(
            f"data.num_nodes: found {list(num_nodes)}, expected at most {most + persons} {reason}; set "
            f"data.num_nodes=[{min(num_nodes[0], most + persons)},{most + persons}] or data.wording={other}"
        )
    least = num_nodes[1] - persons
    if num_symbols is not None and num_symbols < least:
        raise DataError(
            f"data.num_symbols: found {num_symbols}, expected at least {least}, one name for each node"
            f"{' but the two persons' if sentences else ''} of the largest graph; set data.num_symbols={least}"
        )
    if num_symbols is not None and most is not None and num_symbols > most:
        raise DataError(
            f"data.num_symbols: found {num_symbols}, expected at most {most} with data.wording={wording}; "
            f"set data.num_symbols={most}"
        )
