"""Figures of interventions on one question: one intervention with its controls, and an overview of several."""

from collections.abc import Sequence

from plotly import graph_objects as go

from coconut_ds.probing.intervene import InterventionArm, InterventionReport
from serve.app.charts import COLOURS, HeatCell, heat_map, plotly_text, set_layout, wrapped
from serve.app.words import ARMS, CHANGE


def report_figure(report: InterventionReport) -> go.Figure:
    """Change in the original text's log probability under an intervention and its controls; one mark per draw."""
    arms = (report.effect, *report.controls)
    figure = go.Figure()
    for kept, symbol, name in ((False, "circle", "answer changed"), (True, "circle-open", "answer unchanged")):
        places = [(wrapped(arm_name(report, a)), one) for a in arms for one in a.outcomes if one.kept == kept]
        figure.add_scatter(
            x=[one.change for _, one in places],
            y=[place for place, _ in places],
            customdata=[plotly_text(one.answer) or "no answer" for _, one in places],
            mode="markers",
            name=name,
            marker={"symbol": symbol, "size": 11, "color": COLOURS[0 if kept else 1], "line": {"width": 2}},
            hovertemplate="%{y}<br>answer %{customdata}<br>%{x:+.2f} nats<extra></extra>",
        )
    figure.add_vline(x=0, line_color="#888", line_width=1)
    names = [wrapped(arm_name(report, arm)) for arm in arms]
    figure.update_yaxes(categoryorder="array", categoryarray=names[::-1], range=[-0.6, len(names) - 0.4])
    # In two lines, since long names of the rows leave little room.
    figure.update_xaxes(title=CHANGE.replace(" of ", "<br>of ", 1))
    figure.update_yaxes(title="what was changed")
    set_layout(figure, 216 + 38 * len(arms))
    # Also if all draws have the same outcome; below a title of two lines.
    return figure.update_layout(showlegend=True, margin_b=120)


def arm_name(report: InterventionReport, arm: InterventionArm) -> str:
    """The name of an intervention or a control in tables and figures."""
    thought = report.intervention.thought
    if arm is report.effect:
        return f"thought {thought}: intervention"
    return ARMS.get(arm.name, f"control: {arm.name}").format(thought=thought)


def overview_figure(reports: Sequence[InterventionReport], names: dict[str, str]) -> go.Figure:
    """Share of draws that keep the answer and the most frequent answer, for each kind of intervention and thought."""
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
                f"{plotly_text(names[kind])}, thought {thought}<br>"
                f"{arm.kept:.0%} of {len(answers)} draws leave the answer unchanged"
                f"<br>most frequent answer: {plotly_text(common)}<br>{CHANGE}: {arm.mean_change:+.2f}"
            )
            row.append(HeatCell(arm.kept, common, hover))
        cells.append(row)
    rows = [names[kind] for kind in kinds]
    return heat_map(cells, [str(one) for one in thoughts], rows, ("thought", "kind of change"), "answer unchanged")
