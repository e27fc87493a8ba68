"""What each thought attends to: attention weights from thoughts to the tokens of the question, by layer and head.

The row of thought i holds the weights of the position whose state *becomes* thought i. The last row belongs to the
state from which the first token of the text is chosen. On graph problems, the tokens of each edge are marked.

Attention weights show where a position reads from, not what it does with it (arXiv 1902.10186). Two controls tell what
is particular to thoughts: the same weights of the last token of the question (row ``question``), which is no thought,
and the share that a position would give to some tokens if it attended to all positions before it equally. A third one
is a checkpoint that pauses, measured with the same function.

Legend: ``N`` layers, ``H`` heads, ``R`` rows, ``T`` positions of the prompt.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from coconut_ds.data.graph_answers import has_usable_graph
from coconut_ds.data.graph_text import graph_text
from coconut_ds.data.problem import Problem
from coconut_ds.parts import Parts, in_parts
from coconut_ds.probing.baselines import baselines_of
from coconut_ds.probing.cases import Case, Plain
from coconut_ds.probing.states import head_attentions, read_positions
from coconut_ds.probing.superposition import edge_positions
from coconut_ds.reasoner import Reasoner


@dataclass(frozen=True)
class MarkedEdge(Plain):
    """An edge of the question's graph."""

    name: str
    """The names of both nodes: ``a → b``."""
    positions: tuple[int, ...]
    """Positions of its tokens in the prompt."""
    hop: int | None
    """Number of edges from the root to its first node; None if that cannot be reached."""
    is_optimal: bool
    """Whether it is on a shortest path to the target."""


@dataclass(frozen=True)
class ThoughtAttention(Plain):
    """Attention weights of one question."""

    question: str
    tokens: tuple[str, ...]
    """[T] the prompt's tokens; latents are named ``thought 1`` or ``pause 1``, and so on."""
    rows: tuple[str, ...]
    """[R] ``question`` (the control), ``thought 1`` …, ``text``."""
    positions: tuple[int, ...]
    """[R] position of each row; it attends to itself and to the positions before it."""
    weights: tuple[tuple[tuple[tuple[float, ...], ...], ...], ...]
    """[N][H][R][T]; the weights of a row add up to 1."""
    edges: tuple[MarkedEdge, ...] = ()
    """The edges, if the question is that of a graph problem."""

    def mean(self, layer: int, head: int | None = None) -> list[list[float]]:
        """[R][T] the weights of a head of a layer (both from 1), or the mean over the layer's heads."""
        heads = torch.tensor(self.weights[layer - 1])
        chosen: Tensor = heads.mean(dim=0) if head is None else heads[head - 1]
        return chosen.tolist()

    def on_edges(self, layer: int, head: int | None = None) -> list[list[tuple[float, float]]]:
        """[R][edges] for each edge, the weight on all its tokens, and the weight that equal attention would give."""
        found = []
        for row, position in zip(self.mean(layer, head), self.positions, strict=True):
            seen = [[at for at in edge.positions if at <= position] for edge in self.edges]
            found.append([(sum(row[at] for at in own), len(own) / (position + 1)) for own in seen])
        return found


@in_parts
def thought_attention(
    reasoner: Reasoner, question: str, problem: Problem | None = None, n_thoughts: int | None = None
) -> Parts[ThoughtAttention]:
    """Attention from each thought of a question.

    Args:
        reasoner: the model.
        question: the question.
        problem: its problem; if that has a graph, the edges are marked.
        n_thoughts: number of thoughts or pauses; None: the checkpoint's number.

    Raises:
        DataError: the question is too long, or thoughts are requested and the method does not think.
    """
    (known,) = yield from baselines_of.parts(reasoner, [question], n_thoughts, max_new_tokens=1)
    case = known.case
    control = max(len(reasoner.prompter.encode([question])[0]) - 1, 0)
    positions = [control, *read_positions(case)]
    yield None
    (weights,) = head_attentions(reasoner, [case], [known.fed], [positions])
    what = "pause" if reasoner.prompter.method.pauses else "thought"
    rows = ("question", *(f"{what} {number + 1}" for number in range(case.num_latents)), "text")
    return ThoughtAttention(
        question,
        prompt_tokens(reasoner, case),
        rows,
        tuple(positions),
        _nested(weights),
        () if problem is None or not has_usable_graph(problem) else _edges(reasoner, problem),
    )


def prompt_tokens(reasoner: Reasoner, case: Case) -> tuple[str, ...]:
    """[T] the tokens of a prompt as text."""
    ids, first, tokenizer = list(case.prompt.input_ids), case.prompt.first_thought, reasoner.backbone.tokenizer
    what = "pause" if reasoner.prompter.method.pauses else "thought"
    texts = [str(tokenizer.decode([one])) for one in ids]
    latents = [f"{what} {number + 1}" for number in range(case.num_latents)]
    return (*texts[:first], *latents, *texts[first + case.num_latents :])


def _edges(reasoner: Reasoner, problem: Problem) -> tuple[MarkedEdge, ...]:
    text = graph_text(problem, reasoner.card.text_format)
    distances = text.graph.distances(text.asked.root)
    return tuple(
        MarkedEdge(
            " → ".join(text.symbols[node] for node in edge),
            tuple(at),
            distances.get(edge[0]),
            edge in text.optimal,
        )
        for edge, at in edge_positions(reasoner, text).items()
    )


def _nested(weights: Tensor) -> tuple[tuple[tuple[tuple[float, ...], ...], ...], ...]:
    def as_tuples(values: Sequence[object]) -> tuple[object, ...]:
        return tuple(as_tuples(one) if isinstance(one, list) else one for one in values)

    return as_tuples(weights.tolist())  # type: ignore[return-value]
