"""Measures whether a thought encodes a whole search frontier (superposition), by inner products and by attention.

Source: "Reasoning by Superposition" (arXiv 2505.12514), section 5. For thought i, which replaces the step that leads to
distance (hop) i from the root, there are two measures:

* The inner product of the thought (after the feed, if there is one) with the input embedding of each node's name. Nodes
  are grouped into: not reachable from the root; reachable within i hops; on the frontier (at hop i); optimal (on the
  frontier and on a shortest path to the target).
* The attention weight of the position whose state becomes thought i, summed over heads and over the tokens of an edge.
  Edges are grouped by their *source* node: not reachable; reachable within i - 1 hops; at hop i - 1; at hop i - 1 and
  on a shortest path.

The groups are nested: the frontier is part of the reachable nodes, and the optimal nodes are part of the frontier.
Values are first averaged within a problem's group, then over problems. With several thoughts per step, all thoughts of
a step have the same hop. As a control, a pause checkpoint is measured with the same functions, using its states at the
same positions.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from coconut_ds.data.graph_text import GraphText, graph_text
from coconut_ds.data.graphs import Edge
from coconut_ds.data.problem import Problem
from coconut_ds.data.tokens import question_places
from coconut_ds.evaluation.statistics import Mean, mean_of
from coconut_ds.probing.baselines import Baseline, baselines_of
from coconut_ds.probing.cases import Plain, embeddings
from coconut_ds.probing.graph_values import name_tokens
from coconut_ds.probing.states import attentions_of, layer_states
from coconut_ds.reasoner import Reasoner

GROUPS = ("not reachable", "reachable", "frontier", "optimal")


@dataclass(frozen=True)
class GroupValue(Plain):
    """The mean value of one group of nodes or edges at one thought."""

    measure: str
    """Name of the measure: ``inner product``, or ``attention, layer N`` with N from 1."""
    thought: int
    """Number of the thought, from 1."""
    group: str
    """One of ``GROUPS``."""
    value: Mean
    num_problems: int
    """Number of problems that have a node or edge in this group."""


def superposition(reasoner: Reasoner, problems: Sequence[Problem], n_thoughts: int | None = None) -> list[GroupValue]:
    """Computes both measures for every thought and group.

    Args:
        reasoner: the model.
        problems: problems with graphs.
        n_thoughts: number of thoughts or pauses; None: the checkpoint's number.

    Raises:
        DataError: a problem has no graph.
    """
    form = reasoner.card.text_format
    texts = [graph_text(problem, form, f"problem {index}") for index, problem in enumerate(problems)]
    known = baselines_of(reasoner, [problem.question for problem in problems], n_thoughts, max_new_tokens=1)
    found = _by_inner_product(reasoner, texts, known)
    return [*found, *_by_attention(reasoner, texts, known)]


def _by_inner_product(reasoner: Reasoner, texts: Sequence[GraphText], known: Sequence[Baseline]) -> list[GroupValue]:
    table, names = _Table(), _Names(reasoner)
    states = layer_states(reasoner, [one.case for one in known], [one.fed for one in known])
    for text, own in zip(texts, states, strict=True):
        products = own.inputs @ names.embedded([text.names(node) for node in range(text.graph.num_nodes)]).T
        for index, row in enumerate(products.tolist()):
            groups = node_groups(text, hop_of(reasoner, index))
            table.add("inner product", index + 1, {name: [row[node] for node in groups[name]] for name in GROUPS})
    return table.values()


def _by_attention(reasoner: Reasoner, texts: Sequence[GraphText], known: Sequence[Baseline]) -> list[GroupValue]:
    table = _Table()
    weights = attentions_of(reasoner, [one.case for one in known], [one.fed for one in known])
    for text, own in zip(texts, weights, strict=True):
        places = edge_positions(reasoner, text)
        for layer, rows in enumerate(own):
            # The last row belongs to the state before the text, which is not a thought.
            for index, row in enumerate(rows[:-1]):
                groups = edge_groups(text, hop_of(reasoner, index))
                sums = {name: [float(row[places[edge]].sum()) for edge in groups[name]] for name in GROUPS}
                table.add(f"attention, layer {layer + 1}", index + 1, sums)
    return table.values()


def node_groups(text: GraphText, hop: int) -> dict[str, list[int]]:
    """The nodes in each group, for the thought that leads to ``hop``."""
    distances = text.graph.distances(text.asked.root)
    optimal = {node for edge in text.optimal for node in edge}
    frontier = [node for node, distance in distances.items() if distance == hop]
    return {
        "not reachable": [node for node in range(text.graph.num_nodes) if node not in distances],
        "reachable": [node for node, distance in distances.items() if distance <= hop],
        "frontier": frontier,
        "optimal": [node for node in frontier if node in optimal],
    }


def edge_groups(text: GraphText, hop: int) -> dict[str, list[Edge]]:
    """The edges in each group, for the thought that leads to ``hop``."""
    distances, optimal, edges = text.graph.distances(text.asked.root), text.optimal, text.graph.edges
    return {
        "not reachable": [edge for edge in edges if edge[0] not in distances],
        "reachable": [edge for edge in edges if distances.get(edge[0], hop) < hop],
        "frontier": [edge for edge in edges if distances.get(edge[0]) == hop - 1],
        "optimal": [edge for edge in edges if edge in optimal and distances[edge[0]] == hop - 1],
    }


def edge_positions(reasoner: Reasoner, text: GraphText) -> dict[Edge, list[int]]:
    """The positions of each edge's tokens in the prompt, including the separator after the edge."""
    tokens = question_places(reasoner.backbone.tokenizer, text.problem.question, reasoner.card.text_format)
    found = {}
    for edge in text.graph.edges:
        start, end = text.span(edge)
        if text.problem.question.startswith(" |", end):
            end += len(" |")
        found[edge] = [i for i, token in enumerate(tokens) if token.start < end and token.end > start]
    return found


def hop_of(reasoner: Reasoner, index: int) -> int:
    """The hop of the step that thought ``index`` (from 0) replaces."""
    return index // max(reasoner.card.c_thought, 1) + 1


class _Names:
    """Input embeddings of names; for a name of several tokens, their mean."""

    def __init__(self, reasoner: Reasoner) -> None:
        self._reasoner = reasoner
        self._known: dict[str, Tensor] = {}

    def embedded(self, nodes: Sequence[Sequence[str]]) -> Tensor:
        """[nodes, D] one embedding for each node, from its names; the mean if a node has several names."""
        # Names are tokenized after another word, because in a question a name always follows a word.
        return torch.stack([torch.stack([self._embedded(name) for name in names]).mean(dim=0) for names in nodes])

    def _embedded(self, name: str) -> Tensor:
        if name not in self._known:
            before = "" if self._reasoner.card.text_format.one_token else "a"
            ids = name_tokens(self._reasoner.backbone.tokenizer, before, name)
            self._known[name] = embeddings(self._reasoner, ids).float().mean(dim=0).cpu()
        return self._known[name]


class _Table:
    """Collects values by measure, thought and group, with one value per problem."""

    def __init__(self) -> None:
        self._values: dict[tuple[str, int, str], list[float]] = defaultdict(list)

    def add(self, measure: str, thought: int, groups: Mapping[str, Sequence[float]]) -> None:
        """Adds the mean of each of a problem's groups; empty groups are skipped."""
        for name, values in groups.items():
            if values:
                self._values[measure, thought, name].append(sum(values) / len(values))

    def values(self) -> list[GroupValue]:
        """The means over problems."""
        order = sorted(self._values, key=lambda key: (key[0], key[1], GROUPS.index(key[2])))
        return [GroupValue(*key, mean_of(self._values[key]), len(self._values[key])) for key in order]
