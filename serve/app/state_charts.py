"""Figures of single states: attention from each thought, and layer × position patching between two problems."""

from plotly import graph_objects as go

from coconut_ds.probing.state_figures import layer_names
from coconut_ds.probing.state_patching import PatchedGrid, StatePatching
from coconut_ds.probing.thought_attention import ThoughtAttention
from serve.app.charts import WIDE, HeatCell, heat_map, plotly_text
from serve.app.markup import shown_token

SHOWN_FROM = 0.095
"""Smallest attention weight that is written into its cell."""


def attention_figure(found: ThoughtAttention, layer: int, head: int | None) -> go.Figure:
    """Attention weights of a head of a layer (both from 1; no head: mean over heads), from each thought to each token.

    Tokens of edges on a shortest path are marked.
    """
    optimal = {at for edge in found.edges if edge.is_optimal for at in edge.positions}
    tokens = [f"{'★ ' if at in optimal else ''}{shown_token(token)}" for at, token in enumerate(found.tokens)]
    cells = [
        [
            HeatCell(
                weight,
                f"{weight:.1f}".removeprefix("0") if weight >= SHOWN_FROM else "",
                f"from {name} to {plotly_text(shown_token(found.tokens[at]))}, position {at}<br>weight {weight:.1%}",
            )
            for at, weight in enumerate(row)
        ]
        for name, row in zip(found.rows, found.mean(layer, head), strict=True)
    ]
    marked = " (★: in an edge of a shortest path)" if optimal else ""
    return heat_map(
        cells, tokens, found.rows, (f"token of the prompt{marked}", "attention of"), "weight", WIDE, cuts_texts=False
    )


def patching_figure(found: StatePatching, grid: PatchedGrid) -> go.Figure:
    """The effect of replacing each state: layers as rows, the last one at the top, and positions as columns."""
    names = layer_names(len(grid.cells))
    cells = [
        [
            HeatCell(
                cell.effect,
                f"{cell.effect:z.2f}",
                f"layer {name}, {plotly_text(shown_token(at))}<br>effect {cell.effect:.3f}<br>"
                + ("donor's text" if cell.is_donors else "own text" if cell.is_own else "another text"),
            )
            for at, cell in zip(found.positions, row, strict=True)
        ]
        for name, row in zip(names, grid.cells, strict=True)
    ]
    columns = [shown_token(one) for one in found.positions]
    axes = ("position of the replaced state", "layer")
    return heat_map(cells[::-1], columns, names[::-1], axes, "effect", WIDE, cuts_texts=False)
