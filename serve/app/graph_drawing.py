"""Draws a graph problem as SVG: nodes in layers by their distance from the root, candidates coloured by their value.

Shapes and patterns carry the same information as colours: the root is a house, the target a star, the distractor a
cross, every other node a circle; edges of shortest paths to the target are thick, others thin, and nodes of shortest
paths have a double outline. Nodes that cannot be reached from the root are drawn below the others; of these, candidates
have dashed outlines.
"""

from collections.abc import Sequence
from html import escape

from plotly.colors import get_colorscale, sample_colorscale

from coconut_ds.probing.graph_values import Frontier, GraphView, NodeValue
from serve.app.markup import shown_token

WIDTH, HEIGHT = 78, 92
"""Distance in pixels between the centres of neighbouring nodes, and of neighbouring layers."""
RADIUS = 15
MAX_IN_ROW = 8
"""Maximum number of nodes in a row; longer layers take several rows."""
SCALE = get_colorscale("Cividis")


def graph_svg(view: GraphView, place: int) -> str:
    """The graph with the values of ``view.after[place]``."""
    frontier = view.after[place]
    rows, num_reached = layers_of(view)
    spots = _spots(rows)
    width = max(len(row) for row in rows) * WIDTH
    height = len(rows) * HEIGHT
    optimal = set(view.optimal)
    edges = sorted(view.edges, key=lambda edge: edge in optimal)
    parts = [_edge(view, edge, edge in optimal, spots) for edge in edges]
    values = {node.node: node for node in frontier.nodes}
    gold = {node for edge in optimal for node in edge}
    parts += [_node(view, node, values.get(node), spots[node], node in gold) for row in rows for node in row]
    if num_reached < len(rows):
        y = num_reached * HEIGHT
        parts.insert(
            0,
            f'<line class="border" x1="0" y1="{y}" x2="{width}" y2="{y}"/>'
            f'<text class="side" x="4" y="{y + 14}">not reached from the root</text>',
        )
    named = _candidates_text(frontier) or "none"
    label = f"graph of {len(view.symbols)} nodes after {frontier.num_thoughts} thoughts; candidates: {named}"
    return (
        f'<div class="scroll graph" tabindex="0" role="region" aria-label="the graph">'
        f'<svg role="img" aria-label="{escape(label)}" viewBox="0 0 {width} {height}" '
        f'style="min-width:{min(width, 620)}px;max-width:{int(width * 1.25)}px">'
        f"{_ARROWS}{''.join(parts)}</svg></div>{_legend()}"
    )


def _candidates_text(frontier: Frontier) -> str:
    """The candidates and their values, as text."""
    return ", ".join(f"{shown_token(one.name)} {one.value:.0%}" for one in frontier.nodes if one.value is not None)


def layers_of(view: GraphView) -> tuple[list[list[int]], int]:
    """Returns the rows of nodes, and the number of rows whose nodes can be reached from the root; these come first.

    Within a row, nodes are ordered by the mean position of their parents, so that few edges cross.
    """
    hops = _distances(view.edges, [view.root])
    outside = [node for node in range(len(view.symbols)) if node not in hops]
    ends = {child for parent, child in view.edges if parent not in hops}
    depths = _distances(view.edges, [node for node in outside if node not in ends])
    rows: list[list[int]] = []
    places: dict[int, float] = {}
    for group in (hops, {node: depths.get(node, 0) for node in outside}):
        reached = len(rows)
        for depth in sorted(set(group.values())):
            layer = sorted(
                (node for node in group if group[node] == depth),
                key=lambda node: (_barycentre(view, node, places), node),
            )
            for part in (layer[start : start + MAX_IN_ROW] for start in range(0, len(layer), MAX_IN_ROW)):
                rows.append(part)
                places |= {node: (index + 0.5) / len(part) for index, node in enumerate(part)}
    return rows, reached


def _distances(edges: Sequence[tuple[int, int]], starts: Sequence[int]) -> dict[int, int]:
    """Number of edges from the nearest start, for each node that can be reached."""
    found, layer = dict.fromkeys(starts, 0), list(starts)
    while layer:
        layer = list(dict.fromkeys(b for a, b in edges if a in layer and b not in found))
        found |= dict.fromkeys(layer, max(found.values()) + 1)
    return found


def _barycentre(view: GraphView, node: int, places: dict[int, float]) -> float:
    """Mean horizontal position (0 to 1) of a node's parents."""
    parents = [places[a] for a, b in view.edges if b == node and a in places]
    return sum(parents) / len(parents) if parents else 0.5


def _spots(rows: Sequence[Sequence[int]]) -> dict[int, tuple[float, float]]:
    """Position of each node in pixels."""
    width = max(len(row) for row in rows) * WIDTH
    return {
        node: (width * (index + 0.5) / len(row), HEIGHT * (depth + 0.42))
        for depth, row in enumerate(rows)
        for index, node in enumerate(row)
    }


def _edge(view: GraphView, edge: tuple[int, int], is_gold: bool, spots: dict[int, tuple[float, float]]) -> str:
    (x1, y1), (x2, y2) = spots[edge[0]], spots[edge[1]]
    length = max(((x2 - x1) ** 2 + (y2 - y1) ** 2) ** 0.5, 1.0)
    dx, dy = (x2 - x1) / length, (y2 - y1) / length
    kind = "gold" if is_gold else "edge"
    title = escape(f"{view.symbols[edge[0]]} → {view.symbols[edge[1]]}")
    return (
        f'<line class="{kind}" marker-end="url(#{kind}-arrow)" x1="{x1 + dx * RADIUS:.1f}" y1="{y1 + dy * RADIUS:.1f}" '
        f'x2="{x2 - dx * (RADIUS + 5):.1f}" y2="{y2 - dy * (RADIUS + 5):.1f}"><title>{title}</title></line>'
    )


def _node(view: GraphView, node: int, value: NodeValue | None, spot: tuple[float, float], is_gold: bool) -> str:
    x, y = spot
    name = shown_token(view.symbols[node])
    kinds = {view.root: "root", view.target: "target", view.distractor: "distractor"}
    kind = kinds.get(node, "other")
    share = value.value if value is not None else None
    fill = "var(--node)" if share is None else sample_colorscale(SCALE, [min(max(share, 0.0), 1.0)])[0]
    lines = [name] + ([kind] if kind != "other" else [])
    if value is not None:
        lines.append(f"probability {value.probability:.3f}" + (f", value {share:.1%}" if share is not None else ""))
        lines.append(f"height {value.height_shortest} (shortest), {value.height_longest} (longest)")
    apart = " apart" if value is not None and value.hop is None else ""
    ring = f'<circle class="ring" r="{RADIUS + 4}"/>' if is_gold and kind == "other" else ""
    text = "" if share is None else f'<text class="value" y="{RADIUS + 29}">{share:.0%}</text>'
    return (
        f'<g class="node {kind}{apart}" transform="translate({x:.1f} {y:.1f})">'
        f"<title>{escape(chr(10).join(lines))}</title>"
        f'{ring}<path d="{_SHAPES[kind]}" style="fill:{fill}"/>'
        f'<text class="name" y="{RADIUS + 15}">{escape(name if len(name) <= 11 else name[:10] + "…")}</text>{text}</g>'
    )


def _circle(radius: int) -> str:
    return f"M{-radius} 0a{radius} {radius} 0 1 0 {2 * radius} 0a{radius} {radius} 0 1 0 {-2 * radius} 0z"


_SHAPES = {
    "other": _circle(RADIUS - 2),
    "root": "M0 -18L15 -4V14H-15V-4z",
    "target": "M0 -20L5.5 -7 19.5 -6 8.8 3 12.2 17 0 9.4 -12.2 17 -8.8 3 -19.5 -6 -5.5 -7z",
    "distractor": "M-6 -17H6V-6H17V6H6V17H-6V6H-17V-6H-6z",
}
_ARROWS = (
    "<defs>"
    + "".join(
        f'<marker id="{kind}-arrow" class="{kind}" viewBox="0 0 8 8" refX="5" refY="4" markerWidth="{size}" '
        f'markerHeight="{size}" markerUnits="userSpaceOnUse" orient="auto"><path d="M0 0L8 4L0 8z"/></marker>'
        for kind, size in (("edge", 8), ("gold", 12))
    )
    + "</defs>"
)


def _legend() -> str:
    """The legend of shapes, and the colour scale of values."""
    keys = "".join(
        f'<span><svg viewBox="-22 -22 44 44" width="20" height="20" aria-hidden="true"><g class="node {kind}">'
        f'<path d="{_SHAPES[kind]}" style="fill:var(--node)"/></g></svg> {name}</span>'
        for kind, name in (("root", "root"), ("target", "target"), ("distractor", "distractor"))
    )
    colours = ", ".join(sample_colorscale(SCALE, [step / 8 for step in range(9)]))
    return (
        f'<div class="legend">{keys}<span><b class="thick" aria-hidden="true"></b> shortest path to the target</span>'
        f'<span>value 0 % <i style="background:linear-gradient(90deg, {colours})" aria-hidden="true"></i> 100 %</span>'
        "</div>"
    )
