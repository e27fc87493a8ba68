"""The layout of graphs in the app: no edge crosses a label or another node, and nothing overlaps."""

from itertools import pairwise
from types import SimpleNamespace

from hypothesis import given, settings
from hypothesis import strategies as st

from serve.app.graph_layout import RADIUS, layout

graphs = st.integers(2, 24).flatmap(
    lambda count: st.builds(
        lambda edges, names: SimpleNamespace(root=0, symbols=tuple(names), edges=tuple(dict.fromkeys(edges))),
        st.lists(
            st.tuples(st.integers(0, count - 1), st.integers(0, count - 1)).filter(lambda edge: edge[0] != edge[1]),
            min_size=1,
            max_size=40,
        ),
        st.lists(st.text("abc", min_size=1, max_size=14), min_size=count, max_size=count),
    )
)


def along(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Points on the lines between points, at most three pixels apart."""
    found = []
    for (x1, y1), (x2, y2) in pairwise(points):
        steps = int(max(abs(x2 - x1), abs(y2 - y1)) // 3) + 1
        found += [(x1 + (x2 - x1) * step / steps, y1 + (y2 - y1) * step / steps) for step in range(steps + 1)]
    return found


@settings(max_examples=30, deadline=None)
@given(graphs)
def test_edges_cross_no_label_and_no_other_node(view):
    placed = layout(view)
    boxes = placed.boxes
    assert set(boxes) == set(range(len(view.symbols)))
    for node, (left, top, right, bottom) in boxes.items():
        assert 0 <= left < right <= placed.width
        assert 0 <= top < bottom <= placed.height
        for other in range(node):
            a, b, c, d = boxes[other]
            assert right <= a or c <= left or bottom <= b or d <= top
    for edge, points in placed.edges.items():
        for end, (x, y) in zip(edge, (points[0], points[-1]), strict=True):
            assert abs(x - placed.nodes[end][0]) < 1e-6
            assert abs(y - placed.nodes[end][1]) <= 2 * RADIUS
        for x, y in along(points):
            for node, (left, top, right, bottom) in boxes.items():
                # An edge touches the boxes of its own nodes at their shapes, which are left of the labels.
                start = placed.nodes[node][0] + RADIUS if node in edge else left
                assert not (start < x < right and top < y < bottom), (edge, node)
