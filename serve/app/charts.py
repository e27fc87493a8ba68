"""Plotly charts that the figures of all pages are made of: heat maps, line charts and their common layout.

Backgrounds are transparent; ``theme`` sets the colours of text. Colours are distinguishable with colour blindness
(cividis; close to Okabe and Ito's palette), and lines also differ by their markers. Texts of models are escaped,
because Plotly interprets some HTML.
"""

import html
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from plotly import graph_objects as go
from plotly.colors import sample_colorscale

from coconut_ds.evaluation.statistics import Mean

SCALE = "Cividis"
BLACK_FROM = next(
    step / 100
    for step, colour in enumerate(sample_colorscale(SCALE, [step / 100 for step in range(101)], colortype="tuple"))
    if 0.2126 * colour[0] ** 2.2 + 0.7152 * colour[1] ** 2.2 + 0.0722 * colour[2] ** 2.2 > 0.18
)
"""The value, from 0 to 1, from which black text has more contrast than white text on the colour scale."""
NARROW, WIDE = 55, 100
"""Characters that fit into a row of cells on a narrow screen, in a figure of the class ``wide`` or ``widest``."""
COLOURS = ("#2185C5", "#D55E00", "#009E73", "#CC79A7")
"""Okabe and Ito's palette with a lighter blue; each has a contrast of at least 3 on light and dark backgrounds."""
MARKS = ("circle", "square", "diamond", "triangle-up")
LOW, TALL = 260, 330
"""Heights, in pixels, of charts with one line and of those with several lines, which have a legend below."""
CELL = 46
"""Height of a row of cells in pixels."""
NAME = 30
"""Longest line of a row's name in characters: longer lines would leave no room for the row on a narrow screen."""


@dataclass(frozen=True)
class HeatCell:
    """One cell of a heat map."""

    value: float | None
    text: str
    hover: str
    """Lines separated by ``<br>``; the caller must have escaped them."""


def heat_map(
    cells: Sequence[Sequence[HeatCell]],
    columns: Sequence[str],
    rows: Sequence[str],
    axes: tuple[str, str],
    bar: str,
    characters: int = NARROW,
    cuts_texts: bool = True,
) -> go.Figure:
    """A heat map of values from 0 to 1, with the first row at the top.

    Args:
        cells: [rows][columns].
        columns: names of the columns.
        rows: names of the rows.
        axes: titles of the x axis and the y axis.
        bar: title of the colour bar.
        characters: how many fit into a row of cells.
        cuts_texts: whether cells show the beginning of a text that does not fit; if not, as for numbers, no text.
    """
    room = min(max(characters // max(len(columns), 1), 2), 11)
    shown = [[_fitted(cell.text, room, cuts_texts) for cell in row] for row in cells]
    figure = go.Figure(
        go.Heatmap(
            z=[[cell.value for cell in row] for row in cells],
            text=shown,
            customdata=[[cell.hover for cell in row] for row in cells],
            hovertemplate="%{customdata}<extra></extra>",
            colorscale=SCALE,
            zmin=0.0,
            zmax=1.0,
            xgap=2,
            ygap=2,
            colorbar={"title": {"text": bar, "side": "right"}, "thickness": 10, "outlinewidth": 0},
        )
    )
    _add_texts(figure, cells, shown)
    figure.update_xaxes(
        **_named_axis(map(plotly_text, columns)),
        title=axes[0],
        range=[-0.5, len(columns) - 0.5],
        autotickangles=[0, 90],
    )
    figure.update_yaxes(**_named_axis(map(wrapped, rows)), title=axes[1], range=[len(rows) - 0.5, -0.5])
    return set_layout(figure, 124 + CELL * len(cells))


def _named_axis(names: Iterable[str]) -> dict[str, list[Any]]:
    """Options of an axis that shows a name, as Plotly reads it, at each of the positions 0, 1, …"""
    texts = list(names)
    return {"tickvals": list(range(len(texts))), "ticktext": texts}


def _add_texts(figure: go.Figure, cells: Sequence[Sequence[HeatCell]], shown: Sequence[Sequence[str]]) -> None:
    """Adds the texts of cells as marks of their own, since a heat map has one colour for all texts."""
    places = [(x, y, cell) for y, row in enumerate(cells) for x, cell in enumerate(row) if shown[y][x]]
    figure.add_scatter(
        x=[x for x, _, _ in places],
        y=[y for _, y, _ in places],
        text=[shown[y][x] for x, y, _ in places],
        mode="text",
        textfont={"size": 12, "color": ["#000" if (c.value or 0.0) >= BLACK_FROM else "#fff" for _, _, c in places]},
        hoverinfo="skip",
        showlegend=False,
    )


def line_chart(
    x: str, y: str, lines: Sequence[tuple[str, Sequence[object], Sequence[float | None]]], marks: bool = True
) -> go.Figure:
    """A chart with axis titles ``x`` and ``y`` and lines given as (name, x values, y values)."""
    figure = go.Figure()
    for index, (name, places, values) in enumerate(lines):
        figure.add_scatter(
            x=list(places),
            y=list(values),
            name=plotly_text(name),
            mode="lines+markers" if marks else "lines",
            line={"color": COLOURS[index % 4], "dash": ("solid", "dash", "dot", "dashdot")[index % 4], "width": 2.5},
            marker={"symbol": MARKS[index % 4], "size": 9},
        )
    figure.update_xaxes(title=x)
    figure.update_yaxes(title=y)
    if lines and all(isinstance(place, int) for _, places, _ in lines for place in places):
        figure.update_xaxes(dtick=1)
    return set_layout(figure, TALL if len(lines) > 1 else LOW)


def add_means(figure: go.Figure, name: str, places: Sequence[int], means: Sequence[Mean], index: int) -> None:
    """Adds a line of means with their confidence intervals as error bars; ``index`` (0 or 1) selects its style."""
    figure.add_scatter(
        x=list(places),
        y=[one.estimate for one in means],
        error_y={
            "array": [one.high - one.estimate for one in means],
            "arrayminus": [one.estimate - one.low for one in means],
        },
        name=name,
        mode="lines+markers",
        line={"color": COLOURS[index], "dash": ("solid", "dash")[index], "width": 2.5},
        marker={"symbol": MARKS[index], "size": 9},
    )
    figure.update_xaxes(dtick=1)
    set_layout(figure, TALL if len(figure.data) > 1 else LOW)


def set_layout(figure: go.Figure, height: int) -> go.Figure:
    """Sets height (pixels), transparent backgrounds and small margins, and disables zooming and panning."""
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
    figure.update_yaxes(**grid, title_standoff=14)
    return figure


def plotly_text(text: str) -> str:
    """Text that Plotly shows as it is. Plotly reads tags and some entities; quotation marks are not among these."""
    return html.escape(text, quote=False)


def wrapped(name: str) -> str:
    """The name of a row in lines that are not too long, as Plotly reads it."""
    return "<br>".join(map(plotly_text, textwrap.wrap(name, NAME, break_long_words=False)))


def _fitted(text: str, room: int, is_cut: bool) -> str:
    if len(text) > room:
        text = f"{text[: room - 1]}…" if is_cut else ""
    return plotly_text(text)
