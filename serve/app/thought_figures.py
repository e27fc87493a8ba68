"""Figures of one question: its decoded thoughts, their norms, entropies and cosines, and answers after k thoughts."""

from collections.abc import Sequence

from plotly import graph_objects as go

from coconut_ds.generation.decoding import DecodedThought
from coconut_ds.probing.answers import AnswerAfter
from coconut_ds.probing.trace import ThoughtTrace
from serve.app.charts import HeatCell, heat_map, line_chart, plotly_text
from serve.app.markup import shown_token


def decoded_figure(trace: ThoughtTrace) -> go.Figure:
    """The most likely tokens of each thought, and of the state before the text."""
    states = [*(one.decoded for one in trace.thoughts), trace.last]
    names = [*(str(one.number) for one in trace.thoughts), "text"]
    ranks = range(len(trace.last.tokens))
    cells = [
        [HeatCell(one.probabilities[rank], shown_token(one.tokens[rank]), _likely(one, rank, name)) for rank in ranks]
        for one, name in zip(states, names, strict=True)
    ]
    what = "pause" if trace.pauses else "thought"
    axes = ("rank of the token (1: the most likely)", what)
    return heat_map(cells, [str(rank + 1) for rank in ranks], names, axes, "probability")


def layers_figure(trace: ThoughtTrace) -> go.Figure | None:
    """The most likely token at each layer of each thought; None if there are no thoughts."""
    if not trace.thoughts:
        return None
    count = len(trace.thoughts[0].layers)
    cells = [
        [
            HeatCell(
                one.layers[layer].probabilities[0],
                shown_token(one.layers[layer].tokens[0]),
                f"layer {layer}<br>{_top(one.layers[layer], f'thought {one.number}')}",
            )
            for one in trace.thoughts
        ]
        for layer in reversed(range(count))
    ]
    rows = ["input" if layer == 0 else str(layer) for layer in reversed(range(count))]
    columns = [str(one.number) for one in trace.thoughts]
    return heat_map(cells, columns, rows, ("thought", "layer"), "probability")


def norms_figure(trace: ThoughtTrace) -> go.Figure:
    """Norm of each thought, with the mean norm of token embeddings for comparison."""
    numbers = [one.number for one in trace.thoughts]
    figure = line_chart("thought", "norm", [("thoughts", numbers, [one.norm for one in trace.thoughts])])
    figure.add_hline(y=trace.embedding_norm, line_dash="dot", line_color="#888", annotation_text="mean token embedding")
    figure.update_yaxes(rangemode="tozero")
    return figure


def entropies_figure(trace: ThoughtTrace) -> go.Figure:
    """Entropy (nats) of each thought's distribution over tokens, as decoded by the head."""
    numbers = [one.number for one in trace.thoughts]
    figure = line_chart(
        "thought", "entropy (nats)", [("entropy", numbers, [one.decoded.entropy for one in trace.thoughts])]
    )
    figure.update_yaxes(rangemode="tozero")
    return figure


def cosines_figure(trace: ThoughtTrace) -> go.Figure:
    """Cosine similarity of each thought to the previous thought and to the nearest token embedding."""
    numbers = [one.number for one in trace.thoughts]
    figure = line_chart(
        "thought",
        "cosine similarity",
        [
            ("to the previous thought", numbers, [one.cosine_to_previous for one in trace.thoughts]),
            ("to the nearest token embedding", numbers, [one.nearest[0].cosine for one in trace.thoughts]),
        ],
    )
    figure.update_yaxes(range=[-1.05, 1.05])
    return figure


def followed_figure(trace: ThoughtTrace) -> go.Figure | None:
    """Log probability of the followed tokens at each thought and before the text; None if no token is followed."""
    states = [*(one.decoded for one in trace.thoughts), trace.last]
    if not trace.last.chosen:
        return None
    names = [*(str(one.number) for one in trace.thoughts), "text"]
    lines = [
        (shown_token(one.token), names, [state.chosen[index].log_probability for state in states])
        for index, one in enumerate(trace.last.chosen)
    ]
    return line_chart("thought", "log probability", lines)


def answers_figure(answers: Sequence[AnswerAfter]) -> go.Figure:
    """Probability of the generated text and of the forced answer after each number of thoughts."""
    numbers = [one.num_thoughts for one in answers]
    figure = line_chart(
        "thoughts before the answer",
        "probability",
        [
            ("generated text", numbers, [one.probability for one in answers]),
            ("forced answer", numbers, [one.forced_probability for one in answers]),
        ],
    )
    figure.update_yaxes(range=[-0.02, 1.05])
    return figure


def _likely(state: DecodedThought, rank: int, name: str) -> str:
    where = "before the text" if name == "text" else f"thought {name}"
    return f"{where}, rank {rank + 1}<br>{plotly_text(shown_token(state.tokens[rank]))} {state.probabilities[rank]:.1%}"


def _top(state: DecodedThought, name: str) -> str:
    pairs = zip(state.tokens, state.probabilities, strict=True)
    return "<br>".join([name, *(f"{plotly_text(shown_token(token))} {p:.1%}" for token, p in pairs)])
