"""Finds the tokens that name the nodes at each hop of a problem, which thoughts can learn to predict.

Hop i of a problem is its step i, counted from 1. There are two answers to "what comes at hop i":

* the *path*: the node to which step i of the solution leads;
* the *frontier*: all nodes whose shortest distance from the root is i, each with the same share. It needs a graph
  (the keys of ProsQA's files).

A node is named by one token. In a graph problem, the steps from one node to different nodes begin alike ("Every lempus
is a"); the node's token is the first one that differs. In symbols it is the symbol, in one-word arrows the arrow, in
sentences the first token of the node's name. Nodes whose names begin with the same token share it. Problems without a
graph have only a path: of each step the first token after those with which all steps of the problem begin (in GSM8K,
the number after ``<<``).
"""

import re
from collections import defaultdict
from collections.abc import Callable, Sequence

from transformers import PreTrainedTokenizerBase

from coconut_ds.data.encoding import encode
from coconut_ds.data.graph_answers import has_usable_graph
from coconut_ds.data.graph_text import GraphText, graph_text
from coconut_ds.data.problem import Problem
from coconut_ds.data.token_arrays import Hop, Shares
from coconut_ds.formats import Format
from coconut_ds.methods.base import Ids

NAME = re.compile(r"[^\s>]+?(?=\.?\s*$)")
"""The name of a node at the end of a step."""
MOST_KEPT = 1 << 16
"""Number of texts whose tokens are kept before the table is begun again."""


class HopReader:
    """Finds the tokens of each hop, under one tokenizer and format. A pure function of the problem."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, format: Format) -> None:
        self._tokenizer, self._format = tokenizer, format
        self._known: dict[str, Ids] = {}

    def hops(self, problem: Problem) -> list[Hop]:
        """The hops of a problem: one for each step, or without any step one for each edge of a shortest path.

        A graph that cannot be used counts as none.
        """
        if not has_usable_graph(problem):
            return [Hop(path, path) for path in self._paths_of_steps(problem.steps)]
        nodes = _NodeTokens(graph_text(problem, self._format), self._tokens)
        frontiers = nodes.frontiers(len(problem.steps))
        paths: Sequence[Shares] = [nodes.path(step) for step in problem.steps] or [{}] * len(frontiers)
        return [Hop(path, frontier) for path, frontier in zip(paths, frontiers, strict=True)]

    def _paths_of_steps(self, steps: Sequence[str]) -> list[Shares]:
        distinct = self._tokens(list(dict.fromkeys(steps)))
        shared = _num_shared(distinct) if len(distinct) > 1 else 0
        return [{own[min(len(own) - 1, shared)]: 1.0} if own else {} for own in self._tokens(steps)]

    def _tokens(self, steps: Sequence[str]) -> list[Ids]:
        """The tokens of each step, as in training."""
        known = self._known
        if len(known) > MOST_KEPT:
            # A new table, because another thread may be reading the old one.
            self._known = known = {}
        missing = [step for step in dict.fromkeys(steps) if step not in known]
        encoded = encode(self._tokenizer, [step + self._format.step_end for step in missing])
        known.update(zip(missing, encoded, strict=True))
        return [known[step] for step in steps]


class _NodeTokens:
    """The tokens that name the nodes of one graph problem."""

    def __init__(self, text: GraphText, tokens: Callable[[Sequence[str]], list[Ids]]) -> None:
        """
        Args:
            text: the problem.
            tokens: returns the tokens of steps.
        """
        self._text, self._tokens = text, tokens
        self._shared: dict[tuple[str, str], int] = {}

    def frontiers(self, num_hops: int) -> list[Shares]:
        """The tokens of all nodes at each distance from the root.

        Args:
            num_hops: the number of distances; 0: up to that of the target.
        """
        distances = self._text.graph.distances(self._text.asked.root)
        nodes: dict[int, list[int]] = defaultdict(list)
        for node, distance in distances.items():
            nodes[distance].append(node)
        last = num_hops or distances[self._text.asked.target]
        return [self._frontier(nodes[hop], set(nodes[hop - 1])) for hop in range(1, last + 1)]

    def path(self, step: str) -> Shares:
        """The token of the node to which a step leads."""
        found = NAME.search(step)
        if found is None or found[0] not in self._text.symbols:
            # The step is written in other words than the edges.
            return dict.fromkeys(self._tokens([step])[0][:1], 1.0)
        return {self._token(step, found.start(), found[0]): 1.0}

    def _frontier(self, nodes: Sequence[int], before: set[int]) -> Shares:
        """The tokens of ``nodes``, whose parents on shortest paths are in ``before``."""
        text = self._text
        shares: dict[int, float] = defaultdict(float)
        for node in nodes:
            parents = [parent for parent in text.graph.parents[node] if parent in before]
            for parent in parents:
                step, name = text.step((parent, node)), text.symbols[node]
                shares[self._token(step, step.rindex(name), name)] += 1 / (len(nodes) * len(parents))
        return dict(shares)

    def _token(self, step: str, place: int, name: str) -> int:
        """The first token of a step that differs from the steps to other nodes of the graph.

        Args:
            step: the step.
            place: where the name of the node begins in it.
            name: the name.
        """
        before, after = step[:place], step[place + len(name) :]
        if (before, after) not in self._shared:
            to_any = [f"{before}{symbol}{after}" for symbol in self._text.symbols]
            self._shared[before, after] = _num_shared(self._tokens(to_any))
        own = self._tokens([step])[0]
        return own[min(len(own) - 1, self._shared[before, after])]


def _num_shared(texts: Sequence[Ids]) -> int:
    """The number of tokens with which all texts begin."""
    count = 0
    for tokens in zip(*texts, strict=False):
        if len(set(tokens)) > 1:
            break
        count += 1
    return count
