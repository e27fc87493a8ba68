"""The picture of a sweep: one panel for each task, one line for each row, one dot for each run."""

import re
from collections.abc import Sequence
from pathlib import Path

import matplotlib

from coconut_ds.studies.records import Row
from coconut_ds.temporary import temporary_folder

matplotlib.use("Agg")
_NUMBER = re.compile(r"\d+(\.\d+)?")


def draw_rows(rows: Sequence[Row], path: Path) -> None:
    """Draws the accuracies of finished runs, with chance and what the paper reports."""
    from matplotlib import pyplot
    from matplotlib.ticker import PercentFormatter

    tasks = list(dict.fromkeys(row.task for row in rows))
    names = list(dict.fromkeys(row.name for row in rows))
    size = (5.2 * len(tasks), 0.42 * len(names) + 1.5)
    figure, panels = pyplot.subplots(1, len(tasks), figsize=size, sharey=True, squeeze=False, layout="constrained")
    heights = {name: len(names) - number for number, name in enumerate(names)}
    for axes, task in zip(panels[0], tasks, strict=True):
        own = [row for row in rows if row.task == task]
        shown = own[0].shown
        if shown["chance"] is not None:
            axes.axvline(shown["chance"], color="black", linewidth=0.8, linestyle=":", label="chance")
        for height in heights.values():
            axes.axhline(height, color="#dddddd", linewidth=0.7, zorder=0)
        dots = [(entry.accuracy or 0.0, heights[row.name]) for row in own for entry in row.done.values()]
        axes.scatter(*zip(*dots, strict=True), s=48, color="#0072B2", alpha=0.7, clip_on=False, zorder=3)
        reported = [(float(found[0]) / 100, heights[row.name]) for row in own if (found := _reported(row))]
        if reported:
            axes.scatter(*zip(*reported, strict=True), s=60, color="#D55E00", marker="|", label="paper", zorder=4)
        axes.set(xlim=(0, 1), xlabel="accuracy on test problems", title=shown["title"])
        axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        axes.set_yticks(list(heights.values()), list(heights))
    # Below the panels, since dots may be anywhere in them; once, though several panels have the same signs.
    signs = {sign.get_label(): sign for axes in panels[0] for sign in axes.get_legend_handles_labels()[0]}
    if signs:
        figure.legend(handles=list(signs.values()), loc="outside lower center", ncols=len(signs), frameon=False)
    with temporary_folder(path.parent) as folder:
        figure.savefig(folder / path.name, dpi=150)
        (folder / path.name).replace(path)
    pyplot.close(figure)


def _reported(row: Row) -> re.Match[str] | None:
    """The accuracy in percent at the beginning of what the paper reports."""
    return _NUMBER.match(row.shown["paper"] or "")
