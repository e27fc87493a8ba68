"""Linear maps from a thought to the nodes of the search frontier: does thought i hold the nodes at distance i?

For each state that becomes a thought, or with pauses the state before the pause, and each distance (hop) from the root,
a ridge regression from the standardised state to the names of the nodes at that distance is fit on one set of problems.
On others, the nodes of a problem are ranked by the scores of their names (``ranking``). Controls show what such a map
gets without a search:

* *Before thinking*: the same fit from the state that becomes thought 1, which is computed before any thought is fed.
* *Shuffled*: the map is fit to the frontiers of other problems.
* *Mentions*: nodes are ranked without a state, by how often edges begin and end at them and by whether the question
  names them as root or option; each combination scores its share of frontier nodes in the problems of the fit.
* *Chance*: all nodes are equal.

With several thoughts per step, all thoughts of a step have the same own hop, as in ``superposition``.

Legend: ``P`` problems, ``L`` thoughts, ``H`` hops, ``D`` hidden size, ``V`` names.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean

import numpy
import torch

from coconut_ds.data.graph_text import GraphText, graph_text
from coconut_ds.data.problem import Problem
from coconut_ds.errors import DataError
from coconut_ds.evaluation.statistics import Mean, mean_of
from coconut_ds.probing.cases import Plain
from coconut_ds.probing.linear import probed_states
from coconut_ds.probing.ranking import Bools, Floats, average_precision, top_is_relevant
from coconut_ds.probing.ridge import RidgeFit
from coconut_ds.probing.superposition import hop_of
from coconut_ds.reasoner import Reasoner

HELD_OUT = 0.2
"""Share of the problems of the fit on which the penalty is chosen."""
PENALTIES = (1e-4, 1e-3, 1e-2, 0.1, 1.0, 10.0)
"""The penalties to choose from; see ``ridge``."""

SOURCES = ("thought_state", "before_thinking", "shuffled", "mentions", "chance")
"""The fields of ``ReadableHop`` with the rankings."""


@dataclass(frozen=True)
class Ranking(Plain):
    """How well scores rank the nodes of the scored problems."""

    in_frontier: Mean
    """Share of problems whose highest-scoring node is in the frontier."""
    precision: Mean
    """Mean average precision of the frontier among the nodes of the problem."""


@dataclass(frozen=True)
class ReadableHop(Plain):
    """How well the frontier at one hop can be read from one thought; on problems that no map was fit on."""

    thought: int
    """Number of the thought, from 1."""
    hop: int
    """Distance of the frontier from the root, in edges."""
    is_own: bool
    """Whether this is the hop of the step that the thought replaces."""
    num_scored: int
    """Number of scored problems with a node at this distance."""
    penalty: float
    """Penalty of the map, chosen on part of the problems of the fit."""
    thought_state: Ranking
    before_thinking: Ranking | None
    """From the state that becomes thought 1; None for thought 1, whose state this is."""
    shuffled: Ranking
    mentions: Ranking
    chance: Ranking


@dataclass(frozen=True)
class Readable(Plain):
    """Which frontiers can be read from which thoughts."""

    num_fit: int
    num_scored: int
    num_names: int
    """Number of names that a node has in any of these problems."""
    hops: tuple[ReadableHop, ...]
    """By thought, then by hop; hops that no problem of one of both sets has are left out."""


@dataclass(frozen=True, eq=False)
class _Problems:
    """The problems that a map is fit to, or scored on."""

    texts: list[GraphText]
    states: Floats
    """[P, L, D] the states that become thoughts."""
    names: list[list[int]]
    """For each problem, the index of the name of each of its nodes."""

    def frontiers(self, hop: int) -> list[Bools]:
        """For each problem, which of its nodes are in the frontier at ``hop``."""
        own = [set(text.frontier(hop)) for text in self.texts]
        return [
            numpy.array([node in nodes for node in range(text.graph.num_nodes)])
            for text, nodes in zip(self.texts, own, strict=True)
        ]


def readable_frontiers(
    reasoner: Reasoner, fit: Sequence[Problem], scored: Sequence[Problem], *, seed: int = 0
) -> Readable:
    """Fits and scores a map for every thought and hop.

    Problems for which the model makes fewer thoughts than its usual number are left out.

    Args:
        reasoner: the model; it has thoughts or pauses.
        fit: problems with graphs to fit the maps on.
        scored: problems with graphs to score the maps on; none of them may be in ``fit``.
        seed: seed of the shuffle.

    Raises:
        DataError: a problem has no graph, or a question is in both sets.
    """
    shared = {p.question for p in fit} & {p.question for p in scored}
    if shared:
        raise DataError(f"readable frontiers: {len(shared)} questions are in both sets, e.g. {min(shared)!r}")
    names = sorted({name for problem in (*fit, *scored) for name in problem.extra["idx_to_symbol"]})
    places = {name: index for index, name in enumerate(names)}
    fitted, other = _problems(reasoner, fit, places), _problems(reasoner, scored, places)
    found: list[ReadableHop] = []
    if len(fitted.texts) > 1 and other.texts:
        for index in range(reasoner.card.num_latents):
            found += _of_thought(reasoner, fitted, other, index, len(names), seed)
    first = {one.hop: one.thought_state for one in found if one.thought == 1}
    hops = [one if one.thought == 1 else replace(one, before_thinking=first[one.hop]) for one in found]
    return Readable(len(fitted.texts), len(other.texts), len(names), tuple(hops))


def _problems(reasoner: Reasoner, problems: Sequence[Problem], names: Mapping[str, int]) -> _Problems:
    form, count = reasoner.card.text_format, reasoner.card.num_latents
    texts = [graph_text(problem, form, f"problem {index}") for index, problem in enumerate(problems)]
    # The last state is the one before the text, which is no thought.
    known = [
        (text, own[:-1])
        for text, own in zip(texts, probed_states(reasoner, problems, None, -1), strict=True)
        if len(own) == count + 1
    ]
    states = torch.stack([own for _, own in known]).double().numpy() if known else numpy.empty((0, count, 0))
    texts = [text for text, _ in known]
    return _Problems(texts, states, [[names[symbol] for symbol in text.symbols] for text in texts])


def _of_thought(
    reasoner: Reasoner, fit: _Problems, scored: _Problems, index: int, num_names: int, seed: int
) -> Iterator[ReadableHop]:
    """The values of thought ``index`` (from 0), without the control before thinking."""
    states, last = fit.states[:, index], reasoner.card.num_latents - 1
    split = max(1, round((1 - HELD_OUT) * len(states)))
    part, whole = RidgeFit(states[:split]), RidgeFit(states)
    order = numpy.random.default_rng(seed).permutation(len(states))
    for hop in range(1, hop_of(reasoner, last) + 1):
        known, wanted = fit.frontiers(hop), scored.frontiers(hop)
        if not any(map(numpy.any, known)) or not any(map(numpy.any, wanted)):
            continue
        targets = _multi_hot(fit, known, num_names)

        def precision(penalty: float, targets: Floats = targets, known: list[Bools] = known) -> float:
            scores = part.scores(states[split:], targets[:split], penalty)
            found = _measured(_of_nodes(scores, fit.names[split:]), known[split:])
            return fmean(precision for _, precision in found) if found else 0.0

        # If the precision is equal, the larger penalty is chosen.
        penalty = max(sorted(PENALTIES, reverse=True), key=precision)

        def ranking(targets: Floats, penalty: float = penalty, wanted: list[Bools] = wanted) -> Ranking:
            scores = whole.scores(scored.states[:, index], targets, penalty)
            return _ranking(_of_nodes(scores, scored.names), wanted)

        yield ReadableHop(
            index + 1,
            hop,
            hop == hop_of(reasoner, index),
            sum(bool(nodes.any()) for nodes in wanted),
            penalty,
            ranking(targets),
            None,
            ranking(targets[order]),
            _ranking(_mentions(fit, scored, known), wanted),
            _ranking([numpy.zeros(len(nodes)) for nodes in wanted], wanted),
        )


def _multi_hot(problems: _Problems, frontiers: Sequence[Bools], num_names: int) -> Floats:
    """[P, V] 1 for each name of a node in the frontier of the problem, 0 for all others."""
    targets = numpy.zeros((len(frontiers), num_names))
    for row, names, nodes in zip(targets, problems.names, frontiers, strict=True):
        row[names] = nodes
    return targets


def _mentions(fit: _Problems, scored: _Problems, frontiers: Sequence[Bools]) -> list[Floats]:
    """For each scored problem, the share of frontier nodes among the nodes of the fit that are mentioned alike."""
    seen: dict[tuple[int, int, int], list[bool]] = defaultdict(list)
    for text, nodes in zip(fit.texts, frontiers, strict=True):
        for key, is_in in zip(_mentioned(text), nodes.tolist(), strict=True):
            seen[key].append(is_in)
    shares = {key: fmean(values) for key, values in seen.items()}
    usual = fmean(is_in for values in seen.values() for is_in in values)
    return [numpy.array([shares.get(key, usual) for key in _mentioned(text)]) for text in scored.texts]


def _mentioned(text: GraphText) -> list[tuple[int, int, int]]:
    """For each node: the number of edges that begin at it, the number that end at it, and its role: 2 for the root, 1
    for both options, 0 for all others."""
    graph, asked = text.graph, text.asked
    roles = {asked.root: 2, asked.target: 1, asked.distractor: 1}
    return [
        (len(graph.children[node]), len(graph.parents[node]), roles.get(node, 0)) for node in range(graph.num_nodes)
    ]


def _of_nodes(scores: Floats, names: Sequence[Sequence[int]]) -> list[Floats]:
    """For each problem, the scores of its nodes, from its scores [P, V] of all names."""
    return [row[own] for row, own in zip(scores, names, strict=True)]


def _measured(scores: Sequence[Floats], frontiers: Sequence[Bools]) -> list[tuple[float, float]]:
    """Whether the best node is in the frontier, and average precision, for each problem whose frontier has a node."""
    return [
        (top_is_relevant(own, nodes), average_precision(own, nodes))
        for own, nodes in zip(scores, frontiers, strict=True)
        if nodes.any()
    ]


def _ranking(scores: Sequence[Floats], frontiers: Sequence[Bools]) -> Ranking:
    top, precision = zip(*_measured(scores, frontiers), strict=True)
    return Ranking(mean_of(top), mean_of(precision))
