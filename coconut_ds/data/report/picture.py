"""Draws a report on problem files: histograms with one colour per file, and one problem's sequence at each stage."""

from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from coconut_ds.data.report.contents import PARTS, Example, FileStats, Report, Span

FILE_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#666666")
ROLE_COLOURS = {
    "question": "#DDDDDD",
    "start": "#999999",
    "end": "#999999",
    "thought": "#0072B2",
    "pause": "#56B4E9",
    "step": "#E69F00",
    "answer": "#009E73",
}
"""The colours of the roles, in the order of the legend."""
ROLE_WORDS = {"start": "marker", "end": "marker", "step": "written step"}
MOST_BINS = 30
MOST_ROWS = 16
"""Maximum number of stages to draw; of more different stages, evenly spaced ones are chosen."""
WIDTH_INCHES, DPI = 12.0, 130
HALF = 0.34
"""Half the height of a cell; the distance between rows is 1."""
QUESTION_SHARE = 0.14
"""Share of a row's width that the question occupies, whatever its length."""


def draw_report(report: Report, path: Path, metadata: Mapping[str, str] = {}) -> None:
    """Writes the picture as a PNG file, with ``metadata`` as its texts."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    example = report.examples[len(report.examples) // 2] if report.examples else None
    num_rows = min(len(example.rows()), MOST_ROWS) if example else 0
    heights = [2.5, 2.5, *([0.34 * num_rows + 1.1] if example else [])]
    figure = pyplot.figure(figsize=(WIDTH_INCHES, sum(heights) + 0.3), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.1, h_pad=0.1)
    grid = figure.add_gridspec(len(heights), 3, height_ratios=heights)
    panels = [figure.add_subplot(grid[place // 3, place % 3]) for place in range(6)]
    for axes, part in zip(panels, PARTS, strict=False):
        draw_lengths(axes, report.files, part)
    draw_steps(panels[4], report.files)
    draw_legend(panels[5], report)
    if example:
        draw_layouts(figure.add_subplot(grid[2, :]), example, report)
    figure.savefig(path, dpi=DPI, format="png", metadata=dict(metadata))
    pyplot.close(figure)


def draw_lengths(axes: Any, files: Sequence[FileStats], part: str) -> None:
    """Draws a histogram of the number of tokens in ``part``, as shares of problems."""
    values = [file.lengths[part] for file in files]
    low, high = min(int(each.min()) for each in values), max(int(each.max()) for each in values)
    width = -(-(high - low + 1) // MOST_BINS)
    # Place whole numbers in the middle of their bins.
    bins = np.arange(low, high + width + 1, width) - 0.5
    for number, each in enumerate(values):
        shares = np.histogram(each, bins)[0] / len(each)
        # Earlier lines are wider, so that they remain visible under later ones.
        axes.stairs(shares, bins, color=_colour(number), linewidth=1.4 + 0.6 * min(len(values) - 1 - number, 4))
        if len(values) == 1:
            axes.stairs(shares, bins, color=_colour(number), alpha=0.3, fill=True)
    axes.set_xlim(bins[0] - width / 2, max(bins[-1], bins[0] + 3) + width / 2)
    _style(axes, f"tokens: {'question, steps and answer' if part == 'whole' else part}")


def draw_steps(axes: Any, files: Sequence[FileStats]) -> None:
    """Draws shares of problems by number of steps, with one bar per file."""
    numbers = np.arange(min(file.num_steps.min() for file in files), max(file.num_steps.max() for file in files) + 1)
    width = 0.8 / len(files)
    for place, file in enumerate(files):
        shares = [(file.num_steps == number).mean() for number in numbers]
        axes.bar(numbers - 0.4 + (place + 0.5) * width, shares, width, color=_colour(place))
    axes.set_xlim(numbers[0] - 0.6, numbers[-1] + 0.6)
    _style(axes, "number of steps")


def draw_legend(axes: Any, report: Report) -> None:
    """Draws the legend of the files, with the numbers of repeated questions."""
    from matplotlib.patches import Patch

    axes.axis("off")
    # The first pairs are those of the first file with each other file.
    common = [f"\nquestions of the first file: {pair.questions:,}" for pair in report.overlaps]
    labels = [
        _plain(f"{file.name}: {file.size:,} problems\nrepeated questions: {file.duplicate_questions:,}{more}")
        for file, more in zip(report.files, ["", *common], strict=False)
    ]
    handles = [Patch(color=_colour(number)) for number in range(len(labels))]
    axes.legend(handles, labels, loc="upper left", frameon=False, fontsize=9, borderaxespad=0, labelspacing=0.9)


def draw_layouts(axes: Any, example: Example, report: Report) -> None:
    """Draws one row per stage and one cell per token; the question is one block."""
    rows = example.rows()
    places = np.linspace(0, len(rows) - 1, min(len(rows), MOST_ROWS)).round().astype(int)
    longest = max(sum(p.num_tokens for p in pieces if p.role != "question") for _, pieces in rows)
    block = longest * QUESTION_SHARE / (1 - QUESTION_SHARE)
    for y, place in enumerate(places):
        stages, pieces = rows[place]
        axes.text(-0.01 * longest, -y, stages, ha="right", va="center", fontsize=9)
        end = _draw_sequence(axes, pieces, -y, block)
        total = sum(piece.num_tokens for piece in pieces)
        axes.text(end + 0.01 * longest, -y, f"{total:,}", ha="left", va="center", fontsize=8, color="#555555")
    axes.set(xlim=(-0.09 * longest, (block + longest) * 1.04), ylim=(-len(places) + 0.4, 0.7))
    axes.axis("off")
    name = _plain(report.files[0].name)
    axes.set_title(
        f"{report.method}, c_thought {report.spec.c_thought}: problem #{example.index} of {name} at each stage "
        "(right: number of positions)",
        fontsize=10,
        loc="left",
    )
    _role_legend(axes, example)


def _draw_sequence(axes: Any, pieces: Sequence[Span], y: float, block: float) -> float:
    """Draws one row, starting at x = 0. Returns the x coordinate of its end."""
    from matplotlib.patches import Rectangle

    x, low, high = 0.0, y - HALF, y + HALF
    for loss, run in groupby(pieces, key=lambda piece: piece.loss):
        begin = x
        for piece in run:
            width = block if piece.role == "question" else piece.num_tokens
            axes.add_patch(Rectangle((x, low), width, 2 * HALF, facecolor=ROLE_COLOURS[piece.role], linewidth=0))
            if piece.role != "question":
                axes.vlines(x + np.arange(1, piece.num_tokens), low, high, color="white", linewidth=0.5)
            axes.vlines([x, x + width], low, high, color="white", linewidth=2.5)
            _label(axes, piece, x + width / 2, y, width / block)
            x += width
        if loss:
            axes.add_patch(
                Rectangle((begin, low), x - begin, 2 * HALF, fill=False, edgecolor="black", linewidth=1.6, zorder=4)
            )
    return x


def _label(axes: Any, piece: Span, x: float, y: float, room: float) -> None:
    """Writes the name of a span if there is room; ``room`` is its width as a share of the question's width."""
    short, long = "", ""
    if piece.role == "question":
        long = f"question: {piece.num_tokens:,} tokens"
    elif piece.role == "step":
        short, long = str(piece.number), f"step {piece.number}"
    elif piece.role == "answer":
        long = "answer"
    text = long if room > 0.4 else short if room > 0.15 else ""
    if text:
        colour = ROLE_COLOURS[piece.role]
        # A background, so that the borders of cells do not cross the text.
        ground = {"facecolor": colour, "edgecolor": "none", "pad": 1.5}
        ink = "white" if piece.role == "answer" else "black"
        axes.text(x, y, text, ha="center", va="center", fontsize=8, color=ink, bbox=ground, zorder=3)


def _role_legend(axes: Any, example: Example) -> None:
    from matplotlib.patches import Patch

    found = {piece.role for pieces in example.stages for piece in pieces}
    handles = {
        ROLE_WORDS.get(role, role): Patch(facecolor=colour) for role, colour in ROLE_COLOURS.items() if role in found
    }
    handles["with loss"] = Patch(facecolor="white", edgecolor="black", linewidth=1.6)
    axes.legend(
        handles.values(),
        handles.keys(),
        loc="upper center",
        bbox_to_anchor=(0.5, 0.0),
        ncols=len(handles),
        frameon=False,
        fontsize=9,
    )


def _style(axes: Any, label: str) -> None:
    from matplotlib.ticker import MaxNLocator, PercentFormatter

    axes.set_title(label, fontsize=10, loc="left")
    axes.set_ylabel("problems")
    axes.grid(axis="y", color="#E5E5E5", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.set_ylim(bottom=0)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8))
    axes.yaxis.set_major_locator(MaxNLocator(nbins=6, steps=[1, 2, 5, 10]))
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0 if axes.get_ylim()[1] > 0.05 else 1))
    axes.spines[["top", "right"]].set_visible(False)


def _colour(number: int) -> str:
    return FILE_COLOURS[number % len(FILE_COLOURS)]


def _plain(name: str) -> str:
    """Escapes a name for matplotlib, which reads ``$`` as a formula and hides labels that start with ``_``."""
    return (f" {name}" if name.startswith("_") else name).replace("$", r"\$")
