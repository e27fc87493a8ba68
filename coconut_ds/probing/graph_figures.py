"""Figures of probing results on graphs: node values by percentile and by height, node groups, and a single graph."""

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from coconut_ds.probing.figures import BLUE, GREEN, GREY, ORANGE, PINK, SCALE, figure_at
from coconut_ds.probing.graph_values import HEIGHTS, TOP_COUNTS, Frontier, GraphView, HeightValue, Parallelism
from coconut_ds.probing.superposition import GROUPS, GroupValue

FEW_NODES = 10
"""A mean over fewer nodes than this has an unreliable interval and is drawn with an open marker."""
TOP_COLOURS = (BLUE, GREEN, ORANGE)
GROUP_COLOURS = dict(zip(GROUPS, (GREY, PINK, BLUE, ORANGE), strict=True))


def draw_parallelism(curves: Sequence[Parallelism], path: Path, title: str) -> None:
    """Draws the summed value of the best candidates by percentile of problems, one panel per number of thoughts."""
    with figure_at(path, title, 1, len(curves), 1.2 + 2.9 * len(curves), 3.9) as panels:
        for axes, curve in zip(panels, curves, strict=True):
            for top, colour in zip(TOP_COUNTS, TOP_COLOURS, strict=True):
                values = curve.cumulative[f"top {top}"]
                places = [100 * (index + 0.5) / len(values) for index in range(len(values))]
                axes.plot(places, values, color=colour, label=f"top {top}")
            axes.set(ylim=(0, 1.02), xlim=(0, 100), xlabel="percentile of problems")
            axes.set_title(
                f"after {curve.num_thoughts} thoughts\n(frontier {curve.frontier_size.estimate:.1f} nodes, "
                f"probability {curve.mass.estimate:.2f})",
                fontsize=9,
            )
        panels[0].set_ylabel("cumulative value")
        panels[0].legend(frameon=False, loc="lower right")


def draw_heights(values: Sequence[HeightValue], path: Path, title: str) -> None:
    """Draws mean values of correct and of incorrect nodes by height, one row of panels per definition of height."""
    numbers = sorted({one.num_thoughts for one in values})
    with figure_at(path, title, len(HEIGHTS), len(numbers), 1.2 + 2.9 * len(numbers), 6.0) as panels:
        for index, axes in enumerate(panels):
            definition, number = HEIGHTS[index // len(numbers)], numbers[index % len(numbers)]
            own = [one for one in values if (one.definition, one.num_thoughts) == (definition, number)]
            for name, colour, mark in (("correct", BLUE, "o"), ("incorrect", ORANGE, "s")):
                points = [one for one in own if getattr(one, name) is not None]
                means = [getattr(one, name) for one in points]
                heights = [one.height for one in points]
                axes.plot(heights, [mean.estimate for mean in means], color=colour, marker=mark, label=name)
                axes.vlines(heights, [m.low for m in means], [m.high for m in means], color=colour, alpha=0.5)
                rare = [k for k, one in enumerate(points) if getattr(one, f"num_{name}") < FEW_NODES]
                places, shares = [heights[k] for k in rare], [means[k].estimate for k in rare]
                axes.plot(places, shares, mark, color=colour, markerfacecolor="white", linestyle="none")
            axes.set(ylim=(0, 1.02), title=f"after {number} thoughts", xlabel=f"height ({definition} path to a leaf)")
            axes.set_xticks(sorted({one.height for one in own}))
            if index % len(numbers) == 0:
                axes.set_ylabel("mean value")
        panels[0].legend(frameon=False, fontsize=8, title=f"nodes (open: fewer than {FEW_NODES})", loc="center")


def draw_groups(values: Sequence[GroupValue], path: Path, title: str) -> None:
    """Draws one panel per measure: the mean of each group of nodes or edges at each thought."""
    measures = list(dict.fromkeys(one.measure for one in values))
    ordered = [*(m for m in measures if m.startswith("inner")), *(m for m in measures if not m.startswith("inner"))]
    with figure_at(path, title, 1, len(ordered), 1.2 + 3.1 * len(ordered), 4.0) as panels:
        for axes, measure in zip(panels, ordered, strict=True):
            for offset, group in enumerate(GROUPS):
                own = [one for one in values if (one.measure, one.group) == (measure, group)]
                # The groups are shifted horizontally, so that their intervals do not overlap.
                places = [one.thought + 0.06 * (offset - 1.5) for one in own]
                colour = GROUP_COLOURS[group]
                axes.plot(places, [one.value.estimate for one in own], color=colour, marker="o", label=group)
                axes.vlines(places, [o.value.low for o in own], [o.value.high for o in own], color=colour, alpha=0.5)
            axes.set_xticks(sorted({one.thought for one in values}))
            axes.set(title=measure, xlabel="thought")
        panels[0].set_ylabel("mean over problems, 95 % interval")
        panels[0].legend(frameon=False, fontsize=8, ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.15))


def draw_graph(view: GraphView, path: Path, title: str) -> None:
    """Draws one problem's graph once per number of thoughts, with its nodes coloured by value."""
    columns = min(len(view.after), 3)
    rows = -(-len(view.after) // columns)
    with figure_at(path, title, rows, columns, 5.2 * columns, 4.6 * rows + 0.5) as panels:
        places = positions(view)
        for axes, frontier in zip(panels, view.after, strict=False):
            _draw_frontier(axes, view, frontier, places)
        for axes in panels[len(view.after) :]:
            axes.set_axis_off()


def positions(view: GraphView) -> dict[int, tuple[float, float]]:
    """The (x, y) position of each node, from 0 to 1.

    Vertically, nodes are ordered by the longest path from a source; horizontally, by the mean position of their
    parents.
    """
    depth = [0] * len(view.symbols)
    for parent, child in sorted(view.edges):
        depth[child] = max(depth[child], depth[parent] + 1)
    rows: dict[int, list[int]] = defaultdict(list)
    for node, level in enumerate(depth):
        rows[level].append(node)
    across: dict[int, float] = {}
    for level in sorted(rows):
        parents = {node: [across[p] for p, c in view.edges if c == node and p in across] for node in rows[level]}
        rows[level].sort(key=lambda node: (sum(parents[node]) / len(parents[node]) if parents[node] else 0.5, node))
        for place, node in enumerate(rows[level]):
            across[node] = (place + 0.5) / len(rows[level])
    last = max(rows)
    return {node: (across[node], 1 - depth[node] / last if last else 0.5) for node in across}


def _draw_frontier(axes: Any, view: GraphView, frontier: Frontier, places: dict[int, tuple[float, float]]) -> None:
    from matplotlib import colormaps

    values = {one.node: one.value for one in frontier.nodes}
    scale = colormaps[SCALE]
    for parent, child in view.edges:
        is_optimal = (parent, child) in view.optimal
        axes.annotate(
            "",
            places[child],
            places[parent],
            arrowprops={
                "arrowstyle": "-|>",
                "color": GREEN if is_optimal else "#bbbbbb",
                "lw": 2.0 if is_optimal else 0.8,
                "shrinkA": 9,
                "shrinkB": 9,
            },
        )
    roles = {view.root: "root", view.target: "target", view.distractor: "distractor"}
    for node, (x, y) in places.items():
        value = values.get(node)
        face, ink = ("white", "black") if value is None else (scale(value), "black" if value > 0.6 else "white")
        number = "" if value is None else f"\n{value:.2f}"
        edge = ORANGE if node in roles else GREY
        box = {
            "boxstyle": "round,pad=0.25",
            "facecolor": face,
            "edgecolor": edge,
            "linewidth": 2 if node in roles else 0.8,
        }
        role = f"\n({roles[node]})" if node in roles else ""
        axes.text(
            x, y, f"{view.symbols[node]}{role}{number}", ha="center", va="center", fontsize=6, color=ink, bbox=box
        )
    axes.set(xlim=(-0.05, 1.05), ylim=(-0.1, 1.1))
    prefix = f"“{frontier.before} …”, " if frontier.before else ""
    is_empty = not any(one.in_frontier for one in frontier.nodes)
    note = "no node at this distance" if is_empty else f"{prefix}probability {frontier.mass:.2f}"
    axes.set_title(f"after {frontier.num_thoughts} thoughts: {note}", fontsize=9)
    axes.set_axis_off()
