"""Figures of measurements over a data set; hover texts show 95 % confidence intervals."""

from collections.abc import Sequence

from plotly import graph_objects as go

from coconut_ds.evaluation.statistics import Mean
from coconut_ds.probing.answers import SweepPoint
from coconut_ds.probing.effects import Effect
from coconut_ds.probing.graph_values import HeightValue, Parallelism
from coconut_ds.probing.linear import ProbeScore
from serve.app.charts import HeatCell, add_means, heat_map, line_chart, plotly_text
from serve.app.words import CHANGE, words_of


def sweep_figure(points: Sequence[SweepPoint]) -> go.Figure:
    """Accuracy over a data set after each number of thoughts."""
    numbers = [one.num_thoughts for one in points]
    figure = line_chart("thoughts before the answer", "share of right answers", [])
    for index, (name, means) in enumerate(
        (
            ("answer in the generated text", [one.right for one in points]),
            ("forced answer", [one.forced_right for one in points]),
        )
    ):
        add_means(figure, name, numbers, means, index)
    figure.update_yaxes(range=[-0.02, 1.05])
    return figure


def effects_figure(found: Sequence[Effect]) -> go.Figure:
    """Share of problems whose answer is kept, for each kind of intervention and thought."""
    names = list(dict.fromkeys(one.name for one in found))
    thoughts = sorted({one.thought for one in found})
    table = {(one.name, one.thought): one for one in found}
    cells = [[_effect_cell(table.get((name, thought))) for thought in thoughts] for name in names]
    rows = [words_of(name) for name in names]
    axes = ("thought", "kind of change")
    return heat_map(cells, [str(one) for one in thoughts], rows, axes, "answers unchanged", cuts_texts=False)


def probes_figure(scores: Sequence[ProbeScore]) -> go.Figure:
    """Accuracy of a linear probe for each label in each state."""
    labels = list(dict.fromkeys(one.label for one in scores))
    states = list(dict.fromkeys(one.state for one in scores))
    table = {(one.label, one.state): one for one in scores}
    cells = [[_probe_cell(table[label, state]) for state in states] for label in labels]
    columns = [state.replace("thought ", "").replace("before the ", "") for state in states]
    return heat_map(cells, columns, labels, ("thought", "label"), "probe accuracy", cuts_texts=False)


def parallelism_figure(curve: Parallelism) -> go.Figure:
    """Cumulative value of the best candidates, by percentile of problems."""
    lines = []
    for name, values in curve.cumulative.items():
        lines.append((name, [100 * (i + 0.5) / len(values) for i in range(len(values))], values))
    figure = line_chart(
        f"percentile of problems, after {curve.num_thoughts} thoughts", "cumulative value", lines, marks=False
    )
    figure.update_yaxes(range=[-0.02, 1.05])
    return figure


def heights_figure(values: Sequence[HeightValue], definition: str) -> go.Figure:
    """Mean value by height of the node, after the largest number of thoughts.

    Args:
        values: as measured by ``height_values``.
        definition: ``shortest`` or ``longest``, see ``coconut_ds.probing.graph_values``.
    """
    last = max(one.num_thoughts for one in values)
    own = [one for one in values if one.definition == definition and one.num_thoughts == last]
    figure = line_chart(f"height ({definition} path to a leaf), after {last} thoughts", "mean value", [])
    for index, name in enumerate(("correct", "incorrect")):
        pairs = [(one.height, mean) for one in own if (mean := getattr(one, name)) is not None]
        add_means(figure, f"{name} nodes", [height for height, _ in pairs], [mean for _, mean in pairs], index)
    figure.update_yaxes(range=[-0.02, 1.05])
    return figure


def _effect_cell(one: Effect | None) -> HeatCell:
    if one is None:
        return HeatCell(None, "", "not measured")
    lines = [f"{plotly_text(words_of(one.name))}, thought {one.thought}", f"answer unchanged: {_interval(one.kept)}"]
    if one.became_donors is not None:
        lines.append(f"other problem's answer: {_interval(one.became_donors)}")
    lines.append(f"{CHANGE}: {one.change.estimate:+.2f}; {one.num_problems} problems")
    return HeatCell(one.kept.estimate, f"{one.kept.estimate:.0%}", "<br>".join(lines))


def _probe_cell(one: ProbeScore) -> HeatCell:
    lines = [f"{plotly_text(one.label)} in {plotly_text(one.state)}", f"probe: {_interval(one.probe)}"]
    lines.append(f"shuffled labels: {_interval(one.shuffled)}; most frequent label: {one.majority:.0%}")
    if one.lens is not None:
        lines.append(f"model's own head: {_interval(one.lens)}")
    return HeatCell(one.probe.estimate, f"{one.probe.estimate:.0%}", "<br>".join(lines))


def _interval(mean: Mean) -> str:
    return f"{mean.estimate:.1%} ({mean.low:.1%} to {mean.high:.1%})"
