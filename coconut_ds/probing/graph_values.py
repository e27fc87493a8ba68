"""Measures which nodes of its graph a model considers after k thoughts, from the probabilities of what it writes next.

After k thoughts the model is forced to continue in text. The *value* of a node is the probability of its name at the
position of the next node's name, normalised over the frontier, which contains the nodes at that distance from the root
(arXiv 2412.06769, section 5.3, figures 7 to 9). ``probability`` is not normalised; if the whole frontier has little
probability, the values mean little.

The height of a node is given by both definitions that the paper uses (``Graph.heights``).
"""

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from coconut_ds.data.encoding import encode
from coconut_ds.data.graph_text import GraphText, graph_text
from coconut_ds.data.problem import Problem
from coconut_ds.data.tokens import encode_cue
from coconut_ds.errors import DataError
from coconut_ds.evaluation.statistics import Mean, mean_of
from coconut_ds.generation.requests import Request
from coconut_ds.parts import Parts, in_parts
from coconut_ds.probing.cases import Case, OnProgress, Plain, prepare, run_requests, scoring_request
from coconut_ds.reasoner import Reasoner

HEIGHTS = ("shortest", "longest")
"""The two definitions of height: length of the shortest, or of the longest, path to a leaf."""
TOP_COUNTS = (1, 2, 3)
"""Numbers of best candidates whose values are summed."""


@dataclass(frozen=True)
class NodeValue(Plain):
    """One node after k thoughts."""

    node: int
    name: str
    hop: int | None
    """Distance from the root, in edges; None if the root does not reach the node."""
    in_frontier: bool
    is_correct: bool
    """Whether the node is the target or the target can be reached from it."""
    height_shortest: int
    height_longest: int
    probability: float
    """Probability of the node's name."""
    value: float | None
    """The probability, normalised over the frontier; None for nodes outside the frontier."""


@dataclass(frozen=True)
class Frontier(Plain):
    """The nodes that a model may name after k thoughts, with their probabilities."""

    num_thoughts: int
    hop: int
    """Distance of the frontier from the root, in edges."""
    before: str
    """Text that is appended after the thoughts, before the name of a node."""
    mass: float
    """Total probability of all names of the frontier."""
    nodes: tuple[NodeValue, ...]
    """Sorted by probability, highest first."""


@dataclass(frozen=True)
class GraphView(Plain):
    """A graph problem and the values of its nodes after each number of thoughts."""

    question: str
    symbols: tuple[str, ...]
    """Names of the nodes, by index."""
    edges: tuple[tuple[int, int], ...]
    root: int
    target: int
    distractor: int
    optimal: tuple[tuple[int, int], ...]
    """Edges of the shortest paths from the root to the target."""
    after: tuple[Frontier, ...]
    """One entry per number of thoughts."""


@dataclass(frozen=True)
class Parallelism(Plain):
    """How value is distributed over the frontier (arXiv 2412.06769, figure 8)."""

    num_thoughts: int
    num_problems: int
    frontier_size: Mean
    """Mean number of nodes in the frontier."""
    mass: Mean
    """Mean total probability of all names of the frontier, before normalisation."""
    cumulative: dict[str, list[float]]
    """For ``top 1``, ``top 2`` and ``top 3``: summed value of the best candidates, one entry per problem, sorted."""


@dataclass(frozen=True)
class HeightValue(Plain):
    """Mean values of frontier nodes of one height (arXiv 2412.06769, figure 9); None if there is no such node."""

    num_thoughts: int
    definition: str
    """Definition of height: ``shortest`` or ``longest`` path to a leaf."""
    height: int
    correct: Mean | None
    """Mean value of the correct nodes (see ``NodeValue.is_correct``)."""
    num_correct: int
    incorrect: Mean | None
    """Mean value of the other nodes."""
    num_incorrect: int


@in_parts
def graph_views(
    reasoner: Reasoner,
    problems: Sequence[Problem],
    numbers: Sequence[int] | None = None,
    *,
    frontier_only: bool = False,
    progress: OnProgress | None = None,
) -> Parts[list[GraphView]]:
    """Computes the values of the nodes of each problem after each number of thoughts.

    Args:
        reasoner: the model.
        problems: problems with graphs.
        numbers: numbers of thoughts or pauses; None: from 0 to the checkpoint's number, in whole steps.
        frontier_only: leave out the nodes outside the frontier, which have a probability but no value; this is faster.
        progress: see ``OnProgress``.

    Raises:
        DataError: a problem has no graph.
    """
    form = reasoner.card.text_format
    texts = []
    for index, problem in enumerate(problems):
        texts.append(graph_text(problem, form, f"problem {index}"))
        yield None
    size = max(reasoner.card.c_thought, 1)
    numbers = range(0, reasoner.card.num_latents + 1, size) if numbers is None else numbers
    requests: list[Request] = []
    wanted: list[tuple[int, int, int, list[int]]] = []
    for number in numbers:
        cases = yield from prepare.parts(reasoner, [problem.question for problem in problems], number)
        for index, (text, case) in enumerate(zip(texts, cases, strict=True)):
            hop = text.hop(number // size)
            nodes = text.frontier(hop) if frontier_only else list(range(text.graph.num_nodes))
            requests += _requests(reasoner, text, without_cue(case, reasoner), number // size, nodes)
            wanted.append((index, number, hop, nodes))
            yield None
    made = iter((yield from run_requests.parts(reasoner, requests, progress)))
    after: list[list[Frontier]] = [[] for _ in problems]
    for index, number, hop, nodes in wanted:
        probabilities = {
            node: sum(math.exp(sum(next(made).log_probabilities)) for _ in texts[index].names(node)) for node in nodes
        }
        before = texts[index].before_node(number // size)
        after[index].append(_frontier(texts[index], number, hop, before, probabilities))
        yield None
    return [_view(text, frontiers) for text, frontiers in zip(texts, after, strict=True)]


def parallelism(views: Sequence[GraphView]) -> list[Parallelism]:
    """The curves of figure 8 for each number of thoughts, over all problems whose frontier is not empty."""
    curves = []
    for number, frontiers in _by_number(views).items():
        values = [sorted((_value(node) for node in one.nodes if node.in_frontier), reverse=True) for one in frontiers]
        curves.append(
            Parallelism(
                number,
                len(values),
                mean_of([float(len(own)) for own in values]),
                mean_of([one.mass for one in frontiers]),
                {f"top {top}": sorted(sum(own[:top]) for own in values) for top in TOP_COUNTS},
            )
        )
    return curves


def height_values(views: Sequence[GraphView]) -> list[HeightValue]:
    """Mean values of correct and incorrect frontier nodes by height, for both definitions of height."""
    found = []
    for number, frontiers in _by_number(views).items():
        for definition in HEIGHTS:
            groups: dict[tuple[int, bool], list[float]] = defaultdict(list)
            for node in (node for one in frontiers for node in one.nodes if node.in_frontier):
                height = node.height_shortest if definition == "shortest" else node.height_longest
                groups[height, node.is_correct].append(_value(node))
            for height in sorted({height for height, _ in groups}):
                right, wrong = groups.get((height, True), []), groups.get((height, False), [])
                found.append(
                    HeightValue(number, definition, height, _mean(right), len(right), _mean(wrong), len(wrong))
                )
    return found


def _by_number(views: Sequence[GraphView]) -> dict[int, list[Frontier]]:
    """All non-empty frontiers, by number of thoughts."""
    found: dict[int, list[Frontier]] = {}
    for frontier in (one for view in views for one in view.after):
        if any(node.in_frontier for node in frontier.nodes):
            found.setdefault(frontier.num_thoughts, []).append(frontier)
    return dict(sorted(found.items()))


def _mean(values: Sequence[float]) -> Mean | None:
    return mean_of(values) if values else None


def _value(node: NodeValue) -> float:
    assert node.value is not None, "nodes of the frontier have a value"
    return node.value


def without_cue(case: Case, reasoner: Reasoner) -> Case:
    """The case without the cue that asks for the answer, if the prompt ends with one."""
    prompter = reasoner.prompter
    cue = [] if prompter.method.writes_steps else encode_cue(prompter.tokenizer, prompter.format)
    return case.shortened(len(cue))


def _requests(reasoner: Reasoner, text: GraphText, case: Case, stage: int, nodes: Sequence[int]) -> list[Request]:
    tokenizer, before = reasoner.backbone.tokenizer, text.before_node(stage)
    given = name_tokens(tokenizer, "", before) if before else []
    names = [name_tokens(tokenizer, before, name) for node in nodes for name in text.names(node)]
    return [scoring_request(case, reasoner, name, given) for name in names]


def name_tokens(tokenizer: PreTrainedTokenizerBase, before: str, name: str) -> list[int]:
    """Tokens of ``name`` when it follows the text ``before``.

    Raises:
        DataError: the tokenizer merges the end of the text and the name into one token.
    """
    start = encode(tokenizer, [before])[0] if before else []
    whole = encode(tokenizer, [f"{before} {name}".strip()])[0]
    if whole[: len(start)] != start or len(whole) == len(start):
        raise DataError(f"{name!r}: this tokenizer does not give it separate tokens after {before!r}")
    return whole[len(start) :]


def _frontier(text: GraphText, number: int, hop: int, before: str, probabilities: dict[int, float]) -> Frontier:
    frontier, correct = set(text.frontier(hop)), text.correct
    distances = text.graph.distances(text.asked.root)
    shortest, longest = text.graph.heights(), text.graph.heights(longest=True)
    mass = sum(probability for node, probability in probabilities.items() if node in frontier)
    nodes = [
        NodeValue(
            node,
            text.symbols[node],
            distances.get(node),
            node in frontier,
            node in correct,
            shortest[node],
            longest[node],
            probability,
            # If all nodes of the frontier have probability 0, they get equal values.
            (probability / mass if mass else 1 / len(frontier)) if node in frontier else None,
        )
        for node, probability in probabilities.items()
    ]
    return Frontier(number, hop, before, mass, tuple(sorted(nodes, key=lambda node: -node.probability)))


def _view(text: GraphText, frontiers: Sequence[Frontier]) -> GraphView:
    asked = text.asked
    return GraphView(
        text.problem.question,
        tuple(text.symbols),
        text.graph.edges,
        asked.root,
        asked.target,
        asked.distractor,
        tuple(sorted(text.optimal)),
        tuple(frontiers),
    )
