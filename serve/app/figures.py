"""Plotly figures: heat maps and curves with hover. Backgrounds are transparent; ``theme`` colours their text.

Colours are told apart by the colour-blind (cividis; Okabe and Ito), and lines by their marks too. Text of models is
escaped, since Plotly takes some HTML.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from plotly import graph_objects as go

from coconut_ds.evaluation.statistics import Mean
from coconut_ds.generation.decoding import DecodedThought
from coconut_ds.probing.answers import AnswerAfter, SweepPoint
from coconut_ds.probing.effects import Effect
from coconut_ds.probing.graph_values import HeightValue, Parallelism
from coconut_ds.probing.intervene import InterventionArm, InterventionReport
from coconut_ds.probing.linear import ProbeScore
from coconut_ds.probing.trace import ThoughtTrace
from serve.app.markup import shown_token
from serve.app.words import words_of

SCALE = "Cividis"
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7")
"""Okabe and Ito's; readable on white and on black."""
LIGHTER = ("#56B4E9", "#E69F00", "#009E73", "#CC79A7")
MARKS = ("circle", "square", "diamond", "triangle-up")
CELL = 46
"""Pixels: height of a row of cells."""


@dataclass(frozen=True)
class HeatCell:
    """One cell of a heat map."""

    value: float | None
    text: str
    hover: str
    """Lines with ``<br>`` between; escaped by whoever makes it."""


def heat_map(
    cells: Sequence[Sequence[HeatCell]],
    columns: Sequence[str],
    rows: Sequence[str],
    axes: tuple[str, str],
    bar: str,
    bounds: tuple[float, float] = (0.0, 1.0),
) -> go.Figure:
    """Cells row by row, the first row on top.

    Args:
        cells: [rows][columns].
        columns: their names.
        rows: their names.
        axes: titles of the axes, x then y.
        bar: what colour stands for.
        bounds: values at both ends of the scale.
    """
    figure = go.Figure(
        go.Heatmap(
            z=[[cell.value for cell in row] for row in cells],
            text=[[_clipped(cell.text) for cell in row] for row in cells],
            customdata=[[cell.hover for cell in row] for row in cells],
            texttemplate="%{text}",
            hovertemplate="%{customdata}<extra></extra>",
            colorscale=SCALE,
            zmin=bounds[0],
            zmax=bounds[1],
            xgap=2,
            ygap=2,
            colorbar={"title": {"text": bar, "side": "right"}, "thickness": 10, "outlinewidth": 0},
        )
    )
    figure.update_xaxes(tickvals=list(range(len(columns))), ticktext=[escape(one) for one in columns], title=axes[0])
    figure.update_yaxes(
        tickvals=list(range(len(rows))), ticktext=[escape(one) for one in rows], title=axes[1], autorange="reversed"
    )
    return _plain(figure, 124 + CELL * len(cells))


def decoded(trace: ThoughtTrace) -> go.Figure:
    """Each thought's likeliest tokens."""
    states = [*(one.decoded for one in trace.thoughts), trace.last]
    names = [*(str(one.number) for one in trace.thoughts), "text"]
    ranks = range(len(trace.last.tokens))
    cells = [
        [HeatCell(one.probabilities[rank], shown_token(one.tokens[rank]), _likely(one, rank, name)) for rank in ranks]
        for one, name in zip(states, names, strict=True)
    ]
    what = "pause" if trace.pauses else "thought"
    return heat_map(cells, [str(rank + 1) for rank in ranks], names, ("rank of the token", what), "probability")


def layers(trace: ThoughtTrace) -> go.Figure | None:
    """The likeliest token at each layer of each thought; None where nothing was thought."""
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
    return heat_map(cells, columns, rows, ("thought", "layer"), "p of the likeliest")


def sizes(trace: ThoughtTrace) -> go.Figure:
    """Norm of each thought, and the mean norm of token embeddings."""
    numbers = [one.number for one in trace.thoughts]
    figure = _lines("thought", "norm", [("thoughts", numbers, [one.norm for one in trace.thoughts])])
    figure.add_hline(y=trace.embedding_norm, line_dash="dot", line_color="#888", annotation_text="token embeddings")
    figure.update_yaxes(rangemode="tozero")
    return figure


def entropies(trace: ThoughtTrace) -> go.Figure:
    """Entropy of what the head shows of each thought."""
    numbers = [one.number for one in trace.thoughts]
    figure = _lines(
        "thought", "entropy (nats)", [("entropy", numbers, [one.decoded.entropy for one in trace.thoughts])]
    )
    figure.update_yaxes(rangemode="tozero")
    return figure


def cosines(trace: ThoughtTrace) -> go.Figure:
    """Where thoughts point."""
    numbers = [one.number for one in trace.thoughts]
    figure = _lines(
        "thought",
        "cosine",
        [
            ("to the thought before", numbers, [one.cosine_to_previous for one in trace.thoughts]),
            ("to the nearest embedding", numbers, [one.nearest[0].cosine for one in trace.thoughts]),
        ],
    )
    figure.update_yaxes(range=[-1.05, 1.05])
    return figure


def followed(trace: ThoughtTrace) -> go.Figure | None:
    """Log probability of the tokens that were asked for, along the thoughts; None where none was."""
    states = [*(one.decoded for one in trace.thoughts), trace.last]
    if not trace.last.chosen:
        return None
    names = [*(str(one.number) for one in trace.thoughts), "text"]
    lines = [
        (shown_token(one.token), names, [state.chosen[index].log_probability for state in states])
        for index, one in enumerate(trace.last.chosen)
    ]
    return _lines("thought", "log probability", lines)


def after(answers: Sequence[AnswerAfter]) -> go.Figure:
    """Probability of the answer after each number of thoughts."""
    numbers = [one.num_thoughts for one in answers]
    figure = _lines(
        "thoughts before the answer",
        "probability",
        [
            ("of the text it writes", numbers, [one.probability for one in answers]),
            ("of the answer forced at once", numbers, [one.forced_probability for one in answers]),
        ],
    )
    figure.update_yaxes(range=[-0.02, 1.05])
    return figure


def report_figure(made: InterventionReport) -> go.Figure:
    """What a change and its controls do to the log probability of the untouched text; a mark a draw."""
    arms = (made.effect, *made.controls)
    figure = go.Figure()
    for kept, symbol, name in ((False, "circle", "another answer"), (True, "circle-open", "the answer stays")):
        places = [(arm_name(made, a), one) for a in arms for one in a.outcomes if one.kept == kept]
        figure.add_scatter(
            x=[one.change for _, one in places],
            y=[place for place, _ in places],
            customdata=[escape(one.answer) or "no answer" for _, one in places],
            mode="markers",
            name=name,
            marker={"symbol": symbol, "size": 11, "color": COLOURS[0 if kept else 1], "line": {"width": 2}},
            hovertemplate="%{y}<br>answer %{customdata}<br>%{x:+.2f} nats<extra></extra>",
        )
    figure.add_vline(x=0, line_color="#888", line_width=1)
    names = [arm_name(made, arm) for arm in arms]
    figure.update_yaxes(categoryorder="array", categoryarray=names[::-1], range=[-0.6, len(names) - 0.4])
    figure.update_xaxes(title="change of the untouched text's log probability (nats)")
    return _plain(figure, 180 + 34 * len(arms))


def arm_name(made: InterventionReport, arm: InterventionArm) -> str:
    """How a change, or a control, is called in tables and figures."""
    thought = made.intervention.thought
    if arm is made.effect:
        return f"thought {thought}: the change"
    return {"same answer": f"thought {thought}: same answer"}.get(arm.name, arm.name)


def overview_figure(reports: Sequence[InterventionReport], names: dict[str, str]) -> go.Figure:
    """Each change of each thought: share of draws that leave the answer, and the answer that comes most often."""
    kinds = list(dict.fromkeys(one.intervention.kind for one in reports))
    thoughts = sorted({one.intervention.thought for one in reports})
    found = {(one.intervention.kind, one.intervention.thought): one.effect for one in reports}
    cells = []
    for kind in kinds:
        row = []
        for thought in thoughts:
            arm = found[kind, thought]
            answers = [one.answer or "no answer" for one in arm.outcomes]
            common = max(set(answers), key=answers.count)
            hover = (
                f"{escape(names[kind])}, thought {thought}<br>{arm.kept:.0%} of {len(answers)} keep the answer"
                f"<br>most often: {escape(common)}<br>{arm.mean_change:+.2f} nats"
            )
            row.append(HeatCell(arm.kept, common, hover))
        cells.append(row)
    return heat_map(cells, [str(one) for one in thoughts], [names[kind] for kind in kinds], ("thought", ""), "stay")


def sweep_figure(points: Sequence[SweepPoint]) -> go.Figure:
    """Accuracy over a data set after each number of thoughts."""
    numbers = [one.num_thoughts for one in points]
    figure = _lines("thoughts before the answer", "share of right answers", [])
    for index, (name, means) in enumerate(
        (
            ("what it writes by itself", [one.right for one in points]),
            ("answer forced at once", [one.forced_right for one in points]),
        )
    ):
        _add_means(figure, name, numbers, means, index)
    figure.update_yaxes(range=[-0.02, 1.05])
    return figure


def effects_figure(found: Sequence[Effect]) -> go.Figure:
    """Share of answers that stay after each change of each thought."""
    names = list(dict.fromkeys(one.name for one in found))
    thoughts = sorted({one.thought for one in found})
    table = {(one.name, one.thought): one for one in found}
    cells = [[_effect_cell(table.get((name, thought))) for thought in thoughts] for name in names]
    return heat_map(cells, [str(one) for one in thoughts], [words_of(name) for name in names], ("thought", ""), "stay")


def probes(scores: Sequence[ProbeScore]) -> go.Figure:
    """What a linear probe finds of each label in each state."""
    labels = list(dict.fromkeys(one.label for one in scores))
    states = list(dict.fromkeys(one.state for one in scores))
    table = {(one.label, one.state): one for one in scores}
    cells = [[_probe_cell(table[label, state]) for state in states] for label in labels]
    columns = [state.replace("thought ", "").replace("before the ", "") for state in states]
    return heat_map(cells, columns, labels, ("thought", "label"), "found by a probe")


def parallelism_figure(curve: Parallelism) -> go.Figure:
    """Value of the best candidates together, by percentile of problems."""
    lines = []
    for name, values in curve.cumulative.items():
        lines.append((name, [100 * (i + 0.5) / len(values) for i in range(len(values))], values))
    figure = _lines(
        f"percentile of problems, after {curve.num_thoughts} thoughts", "value, added up", lines, marks=False
    )
    figure.update_yaxes(range=[-0.02, 1.05])
    return figure


def heights(values: Sequence[HeightValue], definition: str) -> go.Figure:
    """Mean value by height of the node, over all numbers of thoughts that have such nodes."""
    last = max(one.num_thoughts for one in values)
    own = [one for one in values if one.definition == definition and one.num_thoughts == last]
    figure = _lines(f"height ({definition} way to a leaf), after {last} thoughts", "mean value", [])
    for index, name in enumerate(("correct", "incorrect")):
        pairs = [(one.height, mean) for one in own if (mean := getattr(one, name)) is not None]
        _add_means(figure, f"{name} nodes", [height for height, _ in pairs], [mean for _, mean in pairs], index)
    figure.update_yaxes(range=[-0.02, 1.05])
    return figure


def _effect_cell(one: Effect | None) -> HeatCell:
    if one is None:
        return HeatCell(None, "", "none")
    lines = [f"{escape(words_of(one.name))}, thought {one.thought}", f"stay: {_interval(one.kept)}"]
    if one.became_donors is not None:
        lines.append(f"become the donor's: {_interval(one.became_donors)}")
    lines.append(f"log probability {one.change.estimate:+.2f} nats, {one.num_problems} problems")
    return HeatCell(one.kept.estimate, f"{one.kept.estimate:.0%}", "<br>".join(lines))


def _probe_cell(one: ProbeScore) -> HeatCell:
    lines = [f"{escape(one.label)} in {escape(one.state)}", f"probe {_interval(one.probe)}"]
    lines.append(f"shuffled labels {_interval(one.shuffled)}; commonest {one.majority:.0%}")
    if one.lens is not None:
        lines.append(f"model's own head {_interval(one.lens)}")
    return HeatCell(one.probe.estimate, f"{one.probe.estimate:.0%}", "<br>".join(lines))


def _interval(mean: Mean) -> str:
    return f"{mean.estimate:.1%} ({mean.low:.1%} to {mean.high:.1%})"


def _likely(state: DecodedThought, rank: int, name: str) -> str:
    where = "before the text" if name == "text" else f"thought {name}"
    return f"{where}, rank {rank + 1}<br>{escape(shown_token(state.tokens[rank]))} {state.probabilities[rank]:.1%}"


def _top(state: DecodedThought, name: str) -> str:
    pairs = zip(state.tokens, state.probabilities, strict=True)
    return "<br>".join([name, *(f"{escape(shown_token(token))} {p:.1%}" for token, p in pairs)])


def _clipped(text: str) -> str:
    return escape(text if len(text) <= 9 else f"{text[:8]}…")


def _lines(
    x: str, y: str, lines: Sequence[tuple[str, Sequence[object], Sequence[float | None]]], marks: bool = True
) -> go.Figure:
    figure = go.Figure()
    for index, (name, places, values) in enumerate(lines):
        figure.add_scatter(
            x=list(places),
            y=list(values),
            name=escape(name),
            mode="lines+markers" if marks else "lines",
            line={"color": LIGHTER[index % 4], "dash": ("solid", "dash", "dot", "dashdot")[index % 4], "width": 2.5},
            marker={"symbol": MARKS[index % 4], "size": 9},
        )
    figure.update_xaxes(title=x)
    figure.update_yaxes(title=y)
    if lines and all(isinstance(place, int) for _, places, _ in lines for place in places):
        figure.update_xaxes(dtick=1)
    return _plain(figure, 330 if len(lines) > 1 else 260)


def _add_means(figure: go.Figure, name: str, places: Sequence[int], means: Sequence[Mean], index: int) -> None:
    figure.add_scatter(
        x=list(places),
        y=[one.estimate for one in means],
        error_y={
            "array": [one.high - one.estimate for one in means],
            "arrayminus": [one.estimate - one.low for one in means],
        },
        name=name,
        mode="lines+markers",
        line={"color": LIGHTER[index], "dash": ("solid", "dash")[index], "width": 2.5},
        marker={"symbol": MARKS[index], "size": 9},
    )
    figure.update_xaxes(dtick=1)


def _plain(figure: go.Figure, height: int) -> go.Figure:
    """Without a background of its own, small margins, nothing that moves by accident under a finger."""
    named = sum(bool(one.name) for one in figure.data) > 1
    grid = {"gridcolor": "rgba(128,128,128,0.25)", "zeroline": False, "fixedrange": True, "automargin": True}
    figure.update_layout(
        template="none",
        height=height,
        margin={"l": 10, "r": 10, "t": 40, "b": 84 if named else 10},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        font={"family": "system-ui, sans-serif", "size": 13, "color": "#555"},
        legend={"orientation": "h", "yref": "container", "y": 0, "yanchor": "bottom", "x": 0},
        hoverlabel={"align": "left", "namelength": -1},
        modebar={"remove": ["zoom", "pan", "select", "lasso", "zoomIn", "zoomOut", "autoScale", "resetScale"]},
    )
    figure.update_xaxes(**grid)
    figure.update_yaxes(**grid)
    return figure
