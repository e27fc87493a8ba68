"""Figures of what thoughts hold of a graph: frontiers that linear maps read, and answers after changed thoughts."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from coconut_ds.evaluation.statistics import Mean
from coconut_ds.probing.figures import BLUE, GREEN, GREY, ORANGE, PINK, SCALE, figure_at
from coconut_ds.probing.frontier_probes import ReadableHop
from coconut_ds.probing.hop_effects import HopEffects

SOURCE_STYLES = {
    "thought_state": ("the thought", BLUE, "o", "-"),
    "before_thinking": ("state before thinking", ORANGE, "s", "-"),
    "mentions": ("mentions in the question", GREEN, "D", "--"),
    "shuffled": ("shuffled labels", PINK, "^", "--"),
    "chance": ("chance", GREY, "", ":"),
}
KIND_STYLES = {
    "mean": ("the mean thought", BLUE, "o"),
    "patch": ("another problem's, with another answer", ORANGE, "s"),
    "patch, same answer": ("another problem's, with the same answer", GREEN, "^"),
}


def draw_readable(hops: Sequence[ReadableHop], path: Path, title: str) -> None:
    """Draws both measures of each thought's own hop with all controls, and a heat map of thoughts and hops."""
    with figure_at(path, title, 1, 3, 13.5, 4.9) as (top, precision, matrix):
        own = [one for one in hops if one.is_own]
        for axes, measure in ((top, "in_frontier"), (precision, "precision")):
            for name, (label, colour, mark, line) in SOURCE_STYLES.items():
                made = [(one.thought, getattr(one, name)) for one in own if getattr(one, name) is not None]
                means = [(thought, getattr(ranking, measure)) for thought, ranking in made]
                _means(axes, means, label, colour, mark, line)
            ticks = [f"{one.thought}\nhop {one.hop}\n{one.num_scored:,}" for one in own]
            axes.set_xticks([one.thought for one in own], ticks, fontsize=8)
            axes.set(xlabel="thought, its hop, number of problems with this hop", ylim=(0, 1.02))
        top.set(title="best name is in the frontier", ylabel="share of problems, 95 % interval")
        precision.set(title="average precision of the frontier", ylabel="mean over problems, 95 % interval")
        top.figure.legend(*top.get_legend_handles_labels(), loc="outside lower center", ncols=5, frameon=False)
        _draw_matrix(matrix, hops)


def _draw_matrix(axes: Any, hops: Sequence[ReadableHop]) -> None:
    from matplotlib.patches import Rectangle

    rows, columns = sorted({one.thought for one in hops}), sorted({one.hop for one in hops})
    values = {(one.thought, one.hop): one.thought_state.precision.estimate for one in hops}
    grid = [[values[thought, hop] for hop in columns] for thought in rows]
    image = axes.imshow(grid, cmap=SCALE, vmin=0, vmax=1, aspect="auto")
    for one in hops:
        place, value = (columns.index(one.hop), rows.index(one.thought)), values[one.thought, one.hop]
        axes.text(*place, f"{value:.2f}", ha="center", va="center", color="black" if value > 0.6 else "white")
        if one.is_own:
            corner = (place[0] - 0.47, place[1] - 0.47)
            axes.add_patch(Rectangle(corner, 0.94, 0.94, fill=False, edgecolor=ORANGE, linewidth=2.5))
    chance = {one.hop: one.chance.precision.estimate for one in hops}
    axes.set_xticks(range(len(columns)), [f"{hop}\n(chance {chance[hop]:.2f})" for hop in columns], fontsize=8)
    axes.set_yticks(range(len(rows)), [str(thought) for thought in rows])
    axes.set(xlabel="hop of the frontier", ylabel="thought", title="average precision (framed: own hop)")
    axes.figure.colorbar(image, ax=axes)


def draw_hop_effects(groups: Sequence[HopEffects], path: Path, title: str) -> None:
    """Draws one panel per number of hops: right answers after each thought is replaced, and without any change."""
    if len(groups) == 2:
        # All problems have the same number of hops.
        groups = groups[1:]
    with figure_at(path, title, 1, len(groups), max(6.0, 1.6 + 3.0 * len(groups)), 4.6) as panels:
        for axes, group in zip(panels, groups, strict=True):
            usual = group.undisturbed
            thoughts = sorted({one.thought for one in group.effects})
            axes.axhline(usual.estimate, color=GREY, linestyle=":", label="nothing")
            axes.axhspan(usual.low, usual.high, color=GREY, alpha=0.15, linewidth=0)
            for offset, (name, (label, colour, mark)) in enumerate(KIND_STYLES.items()):
                means = [
                    # The changes are shifted horizontally, so that their intervals do not overlap.
                    (one.thought + 0.08 * (offset - 1), one.right)
                    for one in group.effects
                    if one.name == name and one.right is not None
                ]
                _means(axes, means, label, colour, mark, "-")
            hops = "all problems" if group.hops is None else f"{group.hops} hops to the target"
            axes.set(title=f"{hops} ({group.num_problems:,})", xlabel="replaced thought", ylim=(-0.02, 1.02))
            axes.set_xticks(thoughts)
        panels[0].set_ylabel("share of right answers, 95 % interval")
        handles, texts = panels[0].get_legend_handles_labels()
        legend = {"loc": "outside lower center", "ncols": 2, "frameon": False, "title": "one thought is replaced by"}
        panels[0].figure.legend(handles, texts, **legend)


def _means(axes: Any, means: Sequence[tuple[float, Mean]], label: str, colour: str, mark: str, line: str) -> None:
    places = [place for place, _ in means]
    axes.plot(places, [one.estimate for _, one in means], color=colour, marker=mark, linestyle=line, label=label)
    axes.vlines(places, [one.low for _, one in means], [one.high for _, one in means], color=colour, alpha=0.5)
