"""Figures of attention from thoughts, and of layer × position patching, as PNG files."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from coconut_ds.probing.figures import SCALE, figure_at
from coconut_ds.probing.state_patching import PatchedGrid, StatePatching
from coconut_ds.probing.thought_attention import ThoughtAttention

MAX_PANELS = 4
"""Largest number of layers that are drawn: the last ones, whose attention depends on the most."""


def draw_attention(found: ThoughtAttention, path: Path) -> None:
    """Draws the mean over heads of each of the last layers: one row per thought, one column per token."""
    layers = list(range(1, len(found.weights) + 1))[-MAX_PANELS:]
    width, height = 3.0 + 0.32 * len(found.tokens), 1.2 + 0.34 * len(found.rows)
    optimal = {at for edge in found.edges if edge.is_optimal for at in edge.positions}
    title = f"Attention of each thought, mean over heads: {found.question}"
    with figure_at(path, title, len(layers), 1, width, 0.8 + height * len(layers)) as panels:
        for axes, layer in zip(panels, layers, strict=True):
            image = axes.imshow(found.mean(layer), cmap=SCALE, vmin=0, vmax=1, aspect="auto")
            _ticks(axes, found.tokens, found.rows)
            for at, label in enumerate(axes.get_xticklabels()):
                label.set_fontweight("bold" if at in optimal else "normal")
            marked = " (bold: edges of a shortest path)" if optimal else ""
            axes.set(ylabel="attention of", xlabel=f"token of the prompt{marked}", title=f"layer {layer}")
            axes.figure.colorbar(image, ax=axes, label="weight")


def draw_patching(found: StatePatching, path: Path) -> None:
    """Draws the effect of replacing each state, and the controls, as heat maps of layers and positions."""
    grids = [found.effect, *found.controls]
    width = (2.4 + 0.62 * len(found.positions)) * len(grids)
    title = f"Effect of each state of {found.donor!r} on {found.question!r}"
    with figure_at(path, title, 1, len(grids), max(width, 6), 2.4 + 0.42 * len(found.effect.cells)) as panels:
        for axes, grid in zip(panels, grids, strict=True):
            values = effects(grid)
            image = axes.imshow(values, cmap=SCALE, vmin=0, vmax=1, aspect="auto", origin="lower")
            for layer, row in enumerate(values):
                for at, value in enumerate(row):
                    colour = "black" if value > 0.6 else "white"
                    axes.text(at, layer, f"{value:.2f}", ha="center", va="center", fontsize=7, color=colour)
            _ticks(axes, found.positions, layer_names(len(values)))
            axes.set(
                xlabel="position", ylabel="layer", title=grid.name if grid is found.effect else f"control: {grid.name}"
            )
        panels[0].figure.colorbar(image, ax=panels, label="effect: 0 own text, 1 donor's text")


def effects(grid: PatchedGrid) -> list[list[float]]:
    """[N + 1][P] the effects of a grid."""
    return [[cell.effect for cell in row] for row in grid.cells]


def layer_names(count: int) -> list[str]:
    """The names of ``count`` layers, of which the first is the input of the first block."""
    return ["input", *map(str, range(1, count))]


def _ticks(axes: Any, columns: Sequence[str], rows: Sequence[str]) -> None:
    shown = [text.strip().replace("$", r"\$") or "␣" for text in columns]
    axes.set_xticks(range(len(columns)), shown, rotation=90, fontsize=7)
    axes.set_yticks(range(len(rows)), rows, fontsize=8)
