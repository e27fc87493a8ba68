"""Draws a graph problem as SVG: nodes in layers by their distance from the root, candidates coloured by their value.

Shapes and patterns carry the same information as colours: the root is a house, the target a star, the distractor a
cross, every other node a circle; edges of shortest paths to the target are thick, others thin, and nodes of shortest
paths have a double outline. Nodes that cannot be reached from the root are drawn below the others; of these, candidates
have dashed outlines.
"""

from html import escape

from plotly.colors import get_colorscale, sample_colorscale

from coconut_ds.probing.graph_values import Frontier, GraphView, NodeValue
from serve.app.graph_layout import NOTE, RADIUS, Edge, Placed, Point, layout, shown_name
from serve.app.markup import shown_token

SCALE = get_colorscale("Cividis")


def graph_svg(view: GraphView, place: int) -> str:
    """The graph with the values of ``view.after[place]``."""
    frontier, placed = view.after[place], layout(view)
    optimal = set(view.optimal)
    parts = [_edge(view, edge, edge in optimal, placed) for edge in sorted(view.edges, key=lambda one: one in optimal)]
    values = {node.node: node for node in frontier.nodes}
    gold = {node for edge in optimal for node in edge}
    parts += [_node(view, node, values.get(node), placed.nodes[node], node in gold) for node in placed.nodes]
    if placed.note is not None:
        x, y = placed.note
        parts.append(f'<text class="side" x="{x:.1f}" y="{y + 4:.1f}">{NOTE}</text>')
    named = _candidates_text(frontier) or "none"
    label = f"graph of {len(view.symbols)} nodes after {frontier.num_thoughts} thoughts; candidates: {named}"
    width = int(placed.width)
    moves = " moves" if len(view.after) > 1 else ""
    return (
        f'<div class="scroll graph{moves}" tabindex="0" role="region" aria-label="the graph">'
        f'<svg role="img" aria-label="{escape(label)}" viewBox="0 0 {width} {int(placed.height)}" '
        f'style="min-width:{width}px;max-width:{int(width * 1.25)}px">'
        f"{_ARROWS}{''.join(parts)}</svg></div>{_legend(placed.note is not None)}"
    )


def _candidates_text(frontier: Frontier) -> str:
    """The candidates and their values, as text."""
    return ", ".join(f"{shown_token(one.name)} {one.value:.0%}" for one in frontier.nodes if one.value is not None)


def _edge(view: GraphView, edge: Edge, is_gold: bool, placed: Placed) -> str:
    kind = "gold" if is_gold else "edge"
    points = " ".join(f"{x:.1f},{y:.1f}" for x, y in placed.edges[edge])
    title = escape(f"{view.symbols[edge[0]]} → {view.symbols[edge[1]]}")
    return (
        f'<polyline class="{kind}" marker-end="url(#{kind}-arrow)" points="{points}"><title>{title}</title></polyline>'
    )


def _node(view: GraphView, node: int, value: NodeValue | None, spot: Point, is_gold: bool) -> str:
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
    beside = RADIUS + 9
    text = "" if share is None else f'<text class="value" x="{beside}" y="14">{share:.0%}</text>'
    return (
        f'<g class="node {kind}{apart}" transform="translate({x:.1f} {y:.1f})">'
        f"<title>{escape(chr(10).join(lines))}</title>"
        f'{ring}<path d="{_SHAPES[kind]}" style="fill:{fill}"/>'
        f'<text class="name" x="{beside}" y="{4 if share is None else -1}">{escape(shown_name(name))}</text>{text}</g>'
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


def _legend(has_others: bool) -> str:
    """The legend of shapes, and the colour scale of values.

    Args:
        has_others: whether some nodes are not reached from the root.
    """
    ring = f'<circle class="ring" r="{RADIUS + 4}"/>'
    shown = [
        ("root", "", "root"),
        ("target", "", "target"),
        ("distractor", "", "distractor"),
        ("other", "", "other node"),
        ("other", ring, "on a shortest path"),
    ]
    shown += [("other apart", "", "candidate that the root does not reach")] if has_others else []
    keys = "".join(
        f'<span><svg viewBox="-22 -22 44 44" width="20" height="20" aria-hidden="true"><g class="node {kind}">'
        f'{more}<path d="{_SHAPES[kind.split()[0]]}" style="fill:var(--node)"/></g></svg> {name}</span>'
        for kind, more, name in shown
    )
    colours = ", ".join(sample_colorscale(SCALE, [step / 8 for step in range(9)]))
    return (
        f'<div class="legend">{keys}<span><b class="thick" aria-hidden="true"></b> shortest path to the target</span>'
        f'<span><b class="thin" aria-hidden="true"></b> other edge</span>'
        f'<span>value 0% <i style="background:linear-gradient(90deg, {colours})" aria-hidden="true"></i> 100% '
        "(no colour: not a candidate)</span></div>"
    )
