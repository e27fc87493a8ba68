"""Tables of the *States* page: the numbers of its figures, the graph's edges, and the problems that were patched."""

from coconut_ds.probing.state_patching import PatchedGrid, PatchedState, StatePatching
from coconut_ds.probing.thought_attention import ThoughtAttention
from serve.app import markup
from serve.app.words import STATE_SOURCES


def attention_table(found: ThoughtAttention, layer: int, head: int | None) -> str:
    """The weights of a head of a layer (both from 1; no head: mean over heads), folded, below those of whole edges."""
    rows = [
        [f"{at} {markup.shown_token(token)}", *(f"{weight:.1%}" for weight in weights)]
        for at, (token, *weights) in enumerate(zip(found.tokens, *found.mean(layer, head), strict=True))
    ]
    headers = ["position and token", *(f"from {one}" for one in found.rows)]
    weights = markup.html_table("Attention weights", headers, rows)
    edges = _edge_table(found, layer, head) if found.edges else ""
    return edges + markup.folded("Attention weights, as a table", weights)


def _edge_table(found: ThoughtAttention, layer: int, head: int | None) -> str:
    shares = found.on_edges(layer, head)
    rows = [
        [
            f"{'★ ' if edge.is_optimal else ''}{edge.name}",
            "not reached" if edge.hop is None else str(edge.hop),
            *(f"{row[index][0]:.0%} ({row[index][1]:.0%})" for row in shares),
        ]
        for index, edge in enumerate(found.edges)
    ]
    caption = "Attention to each edge, all its tokens together; in brackets: with equal attention to all positions"
    return markup.html_table(caption, ["edge (★ on a shortest path)", "edges from the root", *found.rows], rows)


def patching_tables(found: StatePatching) -> str:
    """The problems, and the effects of each source of states, folded."""
    grids = "".join(_grid_table(found, grid) for grid in (found.effect, *found.controls))
    return _sources(found) + grids


def _grid_table(found: StatePatching, grid: PatchedGrid) -> str:
    rows = [
        [markup.shown_token(name), *(f"{cell.effect:.3f}{_whose_text(cell)}" for cell in cells)]
        for name, *cells in zip(found.positions, *grid.cells, strict=True)
    ]
    caption = f"{STATE_SOURCES[grid.name]}: effect of each replaced state"
    headers = ["position", "input", *(f"layer {number}" for number in range(1, len(grid.cells)))]
    return markup.folded(f"{caption}, as a table", markup.html_table(caption, headers, rows))


def _whose_text(cell: PatchedState) -> str:
    return " (donor's text)" if cell.is_donors else "" if cell.is_own else " (another text)"


def _sources(found: StatePatching) -> str:
    rows = [["this question", found.question, markup.one_line(found.text)]]
    rows.append(["donor", found.donor, markup.one_line(found.donor_text)])
    rows += [[STATE_SOURCES[one.name], one.source, markup.one_line(found.text)] for one in found.controls if one.source]
    return markup.html_table("Problems", ["problem", "question", "text of the model"], rows)
