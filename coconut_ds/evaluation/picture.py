"""Draws accuracy against the number of thoughts and, in a panel below it, the categories of the answers."""

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, cycle, pairwise
from pathlib import Path
from typing import Any

CATEGORY_COLOURS = {
    "correct_label": "#0072B2",
    "correct_path": "#009E73",
    "longer_path": "#56B4E9",
    "incorrect_label": "#CC79A7",
    "wrong_target": "#E69F00",
    "hallucination": "#D55E00",
}
"""Stacked in this order from the bottom; other categories are stacked above them. The palette (Okabe and Ito) can be
told apart by colour-blind readers."""
SPARE_COLOURS = ("#F0E442", "#999999", "#444444", *CATEGORY_COLOURS.values())
POINT_COLOUR, LINE_COLOUR = "#0072B2", "#555555"
WIDTH_INCHES, DPI = 7.5, 120
"""900 pixels wide."""
ACCURACY_INCHES, CATEGORIES_INCHES = 3.7, 2.7
LEAST_SPAN = 0.1
"""The accuracy axis spans at least ten percentage points, because a smaller range would exaggerate noise."""
LABEL_SHARE = 0.065
"""Height of a line of text as a share of the height of the upper panel."""
LABEL_WIDTH = 22
"""Maximum length, in characters, of a line of text to the right of the panels."""
MOST_TICKS = 20
"""Largest number of tick labels that fit on the horizontal axis."""


@dataclass(frozen=True)
class BudgetPoint:
    """The results for one number of thoughts. Shares are from 0 to 1."""

    num_thoughts: int
    accuracy: float
    low: float
    """Lower end of the 95 % interval of the accuracy."""
    high: float
    """Upper end of that interval."""
    categories: Mapping[str, float] = field(default_factory=dict)
    """Share of the answers in each category; empty if the answers have no categories."""


def draw_sweep(points: Sequence[BudgetPoint], path: Path, title: str, baselines: Mapping[str, float] = {}) -> None:
    """Writes a PNG 900 pixels wide: accuracy with its interval, and a panel of categories if the points have them.

    Args:
        points: at least one, in any order, each with a different number of thoughts.
        path: the PNG file; its folder must exist.
        title: title of the figure.
        baselines: accuracies (from 0 to 1) of methods that do not think, by name; drawn as dotted lines.
    """
    # Imported here because matplotlib is slow to import. pyplot is not used, because it keeps every figure alive and
    # would change the backend of a notebook.
    from matplotlib.figure import Figure

    points = sorted(points, key=lambda point: point.num_thoughts)
    assert points, "nothing to draw"
    assert len({point.num_thoughts for point in points}) == len(points), "a number of thoughts occurs twice"
    heights = [ACCURACY_INCHES, *([CATEGORIES_INCHES] if any(point.categories for point in points) else [])]
    figure = Figure(figsize=(WIDTH_INCHES, sum(heights)), layout="constrained")
    panels = figure.subplots(len(heights), 1, sharex=True, squeeze=False, height_ratios=heights)[:, 0]
    _draw_accuracy(panels[0], points, baselines)
    panels[0].set_title(escaped(textwrap.fill(title, 80)), fontsize=11, loc="left")
    if len(heights) > 1:
        _draw_categories(panels[1], points)
    _number_thoughts(panels[-1], [point.num_thoughts for point in points])
    figure.align_ylabels(panels)
    figure.savefig(path, dpi=DPI, format="png")


def _draw_accuracy(axes: Any, points: Sequence[BudgetPoint], baselines: Mapping[str, float]) -> None:
    shares = [(point.accuracy, point.low, point.high) for point in points]
    low, high = fit_shares(axes, [*chain(*shares), *baselines.values()])
    draw_shares(axes, [point.num_thoughts for point in points], shares, POINT_COLOUR)
    _draw_baselines(axes, baselines, low, high)
    style(axes, "accuracy, 95% interval")


def fit_shares(axes: Any, shown: Sequence[float]) -> tuple[float, float]:
    """Sets the limits of the vertical axis so that all shares are visible; returns them."""
    span = max(shown) - min(shown)
    pad = max(0.06 * span, (LEAST_SPAN - span) / 2)
    # The axis extends a little beyond 0 and 100 %, so that markers there are not cut in half.
    beyond = 0.03 * max(span, LEAST_SPAN)
    low, high = max(-beyond, min(shown) - pad), min(1 + beyond, max(shown) + pad)
    axes.set_ylim(low, high)
    return low, high


def draw_shares(
    axes: Any,
    places: Sequence[float],
    shares: Sequence[tuple[float, float, float]],
    colour: str,
    marker: str = "o",
    label: str | None = None,
) -> None:
    """Draws a curve of shares with their intervals.

    Args:
        axes: the panel.
        places: horizontal places of the points.
        shares: for each point the share, and the lower and upper end of its interval.
        colour: colour of the curve.
        marker: marker of the points.
        label: name of the curve in a legend.
    """
    axes.errorbar(
        places,
        [share for share, _, _ in shares],
        # Rounding can put an end of the interval on the wrong side of the point; matplotlib rejects negative lengths.
        yerr=[
            [max(0.0, share - low) for share, low, _ in shares],
            [max(0.0, high - share) for share, _, high in shares],
        ],
        color=colour,
        marker=marker,
        label=label,
        markersize=6,
        linewidth=1.2,
        elinewidth=1.4,
        capsize=4,
        zorder=3,
    )


def _draw_baselines(axes: Any, baselines: Mapping[str, float], low: float, high: float) -> None:
    """Draws dotted lines, with their names to the right of the panel; names of close lines are moved apart."""
    ordered = sorted(baselines.items(), key=lambda item: item[1])
    labels = [escaped(textwrap.fill(f"{name}  {value:.1%}", LABEL_WIDTH)) for name, value in ordered]
    line = LABEL_SHARE * (high - low)
    places = spread([value for _, value in ordered], [line * (1 + text.count("\n")) for text in labels], low, high)
    for (_, value), text, place in zip(ordered, labels, places, strict=True):
        axes.axhline(value, color=LINE_COLOUR, linestyle=":", linewidth=1.3, zorder=2)
        axes.annotate(
            text,
            xy=(1.0, value),
            xytext=(1.03, place),
            xycoords=("axes fraction", "data"),
            textcoords=("axes fraction", "data"),
            va="center",
            fontsize=9,
            arrowprops={
                "arrowstyle": "-",
                "color": LINE_COLOUR,
                "linewidth": 0.8,
                "shrinkA": 2,
                "shrinkB": 0,
                "relpos": (0, 0.5),
            },
        )


def spread(places: Sequence[float], heights: Sequence[float], low: float, high: float) -> list[float]:
    """Moves labels apart vertically so that they do not overlap, keeping each close to its original place.

    Args:
        places: the centres of the labels, in ascending order.
        heights: the heights of the labels.
        low: lower limit; the labels stay between the limits if there is room for all of them.
        high: upper limit.

    Returns:
        The new centres.
    """
    moved = list(places)
    gaps = [(one + other) / 2 for one, other in pairwise(heights)]
    # Pushing labels up from the bottom removes all overlaps, and so does pushing them down from the top. The average of
    # the two results stays closest to the original places.
    up, down = list(moved), list(moved)
    for i, gap in enumerate(gaps):
        up[i + 1] = max(up[i + 1], up[i] + gap)
    for i, gap in reversed(list(enumerate(gaps))):
        down[i] = min(down[i], down[i + 1] - gap)
    moved = [(one + other) / 2 for one, other in zip(up, down, strict=True)]
    floor = low
    for i, height in enumerate(heights):
        moved[i] = max(moved[i], floor + height / 2)
        floor = moved[i] + height / 2
    ceiling = high
    for i, height in reversed(list(enumerate(heights))):
        moved[i] = min(moved[i], ceiling - height / 2)
        ceiling = moved[i] - height / 2
    return moved


def _draw_categories(axes: Any, points: Sequence[BudgetPoint]) -> None:
    """Draws one stacked bar per number of thoughts, with the legend on the right in the order of the stack."""
    numbers = [point.num_thoughts for point in points]
    width = 0.8 * _smallest_gap(numbers)
    base = [0.0] * len(points)
    for name, colour in _colours(points).items():
        shares = [point.categories.get(name, 0.0) for point in points]
        words = escaped(textwrap.fill(name.replace("_", " "), LABEL_WIDTH))
        axes.bar(numbers, shares, width, bottom=base, color=colour, edgecolor="white", linewidth=0.6, label=words)
        base = [low + share for low, share in zip(base, shares, strict=True)]
    axes.set_ylim(0, max(1.0, *base))
    axes.legend(loc="upper left", bbox_to_anchor=(1.02, 1.0), borderaxespad=0, frameon=False, fontsize=9, reverse=True)
    style(axes, "share of answers")


def _colours(points: Sequence[BudgetPoint]) -> dict[str, str]:
    """The categories in stacking order with their colours; known categories have the same colour in every figure."""
    found = dict.fromkeys(name for point in points for name in point.categories)
    known = {name: colour for name, colour in CATEGORY_COLOURS.items() if name in found}
    spare = cycle(colour for colour in SPARE_COLOURS if colour not in known.values())
    return {**known, **{name: next(spare) for name in found if name not in known}}


def _number_thoughts(axes: Any, numbers: Sequence[int]) -> None:
    """Labels the horizontal axis with the measured numbers, except those too close to the previous label."""
    reach = numbers[-1] - numbers[0]
    ticks = [numbers[0]]
    for number in numbers:
        if number - ticks[-1] > reach / MOST_TICKS:
            ticks.append(number)
    axes.set_xticks(ticks)
    margin = max(0.7 * _smallest_gap(numbers), 0.02 * reach) if reach else 1.6
    axes.set_xlim(numbers[0] - margin, numbers[-1] + margin)
    axes.set_xlabel("number of thoughts")


def _smallest_gap(numbers: Sequence[int]) -> int:
    """The smallest distance between neighbouring numbers; 1 if there is only one number."""
    return min((later - one for one, later in pairwise(numbers)), default=1)


def style(axes: Any, label: str) -> None:
    """Styles a panel of shares; ``label`` is that of its vertical axis."""
    from matplotlib.ticker import MaxNLocator, PercentFormatter

    axes.set_ylabel(label)
    axes.grid(axis="y", color="#E5E5E5", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.yaxis.set_major_locator(MaxNLocator(nbins=6, steps=[1, 2, 5, 10]))
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.spines[["top", "right"]].set_visible(False)


def escaped(name: str) -> str:
    """Escapes a name for matplotlib, which reads ``$`` as the start of a formula and hides labels that begin with _."""
    return (f" {name}" if name.startswith("_") else name).replace("$", r"\$")
