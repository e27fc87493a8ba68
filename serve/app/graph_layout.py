"""Places a graph problem's nodes and edges so that no edge crosses a label: a layered layout with room for long edges.

Every node has a box that holds its shape and, to the right of it, its label. Boxes are in rows, by distance from the
root. Edges run in the gaps between rows; an edge that passes a row does so through a channel of its own between the
boxes. Positions are in pixels.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from coconut_ds.probing.graph_values import GraphView

RADIUS = 15
"""Radius of a node's shape."""
ROW, GAP = 46, 44
"""Height of a row, and of the gap between two rows."""
CHARACTER = 7.4
"""Width of a character of a label; the tests in a browser check that labels fit into their boxes."""
CHANNEL, SPACE = 12, 12
"""Width of a channel, and smallest space between the items of a row."""
ARROW = 4
"""Space between the end of an edge and a shape, for the tip of the arrow."""
MAX_IN_ROW = 8
"""Maximum number of nodes in a row; longer layers take several rows."""
NOTE = "not reached from the root:"
"""Text above the nodes that cannot be reached from the root."""
Edge = tuple[int, int]
Point = tuple[float, float]


@dataclass
class _Item:
    """A part of a row: a node, a channel of an edge, or the note."""

    key: float
    """Orders the items of a row: the share of the row to the left of the item, from 0 to 1."""
    width: float
    node: int | None = None
    edge: Edge | None = None
    left: float = 0.0


@dataclass(frozen=True)
class Placed:
    """A graph's layout."""

    width: float
    height: float
    nodes: dict[int, Point]
    """Centre of each node's shape."""
    boxes: dict[int, tuple[float, float, float, float]]
    """Left, top, right and bottom of each node with its label."""
    edges: dict[Edge, list[Point]]
    """Points of each edge. The lines between them cross no box; they touch those of their own nodes at the shapes."""
    note: Point | None
    """Left end and middle of the note, if some nodes cannot be reached from the root."""


def layout(view: GraphView) -> Placed:
    """Places all nodes and edges of a graph."""
    rows, num_reached = layers_of(view)
    note_row = num_reached if num_reached < len(rows) else None
    row_of = {
        node: place + (note_row is not None and place >= note_row) for place, row in enumerate(rows) for node in row
    }
    lines = _lines(view, rows, row_of, note_row)
    width = _spread(lines)
    nodes: dict[int, Point] = {}
    boxes: dict[int, tuple[float, float, float, float]] = {}
    channels: dict[tuple[Edge, int], float] = {}
    for row, line in enumerate(lines):
        for one in line:
            if one.node is not None:
                nodes[one.node] = (one.left + RADIUS + 5, _top(row) + ROW / 2)
                boxes[one.node] = (one.left, _top(row), one.left + one.width, _top(row) + ROW)
            elif one.edge is not None:
                channels[one.edge, row] = one.left + CHANNEL / 2
    edges = {edge: _points(edge, nodes, row_of, channels) for edge in view.edges}
    note = None if note_row is None else (lines[note_row][0].left, _top(note_row) + ROW / 2)
    return Placed(width, _top(len(lines)) - GAP + SPACE, nodes, boxes, edges, note)


def shown_name(name: str) -> str:
    """A node's name, shortened to the length of a label."""
    return name if len(name) <= 11 else f"{name[:10]}…"


def _top(row: int) -> float:
    return SPACE + row * (ROW + GAP)


def _lines(
    view: GraphView, rows: Sequence[Sequence[int]], row_of: dict[int, int], note_row: int | None
) -> list[list[_Item]]:
    """The items of each row, from left to right."""
    keys = {node: (index + 0.5) / len(row) for row in rows for index, node in enumerate(row)}
    lines = [[_Item(keys[node], _box_width(view, node), node) for node in row] for row in rows]
    if note_row is not None:
        lines.insert(note_row, [_Item(-1.0, CHARACTER * len(NOTE))])
    for edge in view.edges:
        start, end = row_of[edge[0]], row_of[edge[1]]
        for row in _passed(start, end):
            share = (row - start) / (end - start)
            lines[row].append(_Item(keys[edge[0]] * (1 - share) + keys[edge[1]] * share, CHANNEL, edge=edge))
    return [sorted(line, key=lambda one: one.key) for line in lines]


def _box_width(view: GraphView, node: int) -> float:
    return 2 * RADIUS + 18 + CHARACTER * max(len(shown_name(view.symbols[node])), 4)


def _passed(start: int, end: int) -> range:
    """The rows between two rows, in the order in which an edge passes them."""
    return range(start + 1, end) if start < end else range(start - 1, end, -1)


def _spread(lines: Sequence[Sequence[_Item]]) -> float:
    """Sets the left end of all items, each row spread evenly over the width of the picture, which is returned."""
    widths = [sum(one.width + SPACE for one in line) + SPACE for line in lines]
    for line, own in zip(lines, widths, strict=True):
        space = SPACE + (max(widths) - own) / (len(line) + 1)
        left = space
        for one in line:
            one.left = left
            left += one.width + space
    return max(widths)


def _points(
    edge: Edge, nodes: dict[int, Point], row_of: dict[int, int], channels: dict[tuple[Edge, int], float]
) -> list[Point]:
    """The points of an edge, from shape to shape. Only vertical parts of it are inside rows."""
    (x1, y1), (x2, y2) = nodes[edge[0]], nodes[edge[1]]
    start, end = row_of[edge[0]], row_of[edge[1]]
    half = ROW / 2
    if start == end:
        below = y1 + half + GAP * 0.4
        return [(x1, y1 + RADIUS), (x1, y1 + half), ((x1 + x2) / 2, below), (x2, y2 + half), (x2, y2 + RADIUS + ARROW)]
    down = 1 if start < end else -1
    points = [(x1, y1 + down * RADIUS), (x1, y1 + down * half)]
    for row in _passed(start, end):
        x, middle = channels[edge, row], _top(row) + half
        points += [(x, middle - down * half), (x, middle + down * half)]
    return [*points, (x2, y2 - down * half), (x2, y2 - down * (RADIUS + ARROW))]


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
