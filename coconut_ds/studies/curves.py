"""The learning curves of a sweep: one panel for each task, one thin line for each run, one colour for each row."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import matplotlib
import yaml

from coconut_ds.errors import CheckpointError
from coconut_ds.runs.folder import RunFolder
from coconut_ds.studies.records import Entry, Row
from coconut_ds.temporary import temporary_folder
from coconut_ds.training.metrics import read_metrics

matplotlib.use("Agg")
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Of rows (Okabe and Ito), which colour-blind readers can tell apart."""
STYLES = ("-", "--", "-.")
"""Of lines: each is used with all colours before the next."""
EARLIER = ":"
"""Style of the part of a line on the earlier problems of ``data.schedule``."""


def draw_curves(rows: Sequence[Row], path: Path) -> bool:
    """Draws the accuracy on validation problems against updates, of each finished run whose metrics are there.

    Epochs on other problems than the run's own (``data.schedule``) are dotted.

    Returns:
        Whether there were any; nothing is drawn otherwise.
    """
    from matplotlib import pyplot
    from matplotlib.lines import Line2D
    from matplotlib.ticker import PercentFormatter

    curves = {id(row): found for row in rows if (found := [*filter(None, map(_curve, row.done.values()))])}
    shown = [row for row in rows if id(row) in curves]
    if not shown:
        return False
    looks = _looks([row.name for row in shown])
    tasks = list(dict.fromkeys(row.task for row in shown))
    figure, panels = pyplot.subplots(
        1, len(tasks), figsize=(5.2 * len(tasks) + 2, 4), sharey=True, squeeze=False, layout="constrained"
    )
    handles = [Line2D([], [], label=name, linewidth=2, **look) for name, look in looks.items()]
    for axes, task in zip(panels[0], tasks, strict=True):
        own = [row for row in shown if row.task == task]
        for row in own:
            for curve in curves[id(row)]:
                _draw(axes, curve, looks[row.name])
        axes.set(xlabel="updates", title=own[0].shown["title"], xlim=(0, None), ylim=(-0.02, 1.02))
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    panels[0][0].set_ylabel("accuracy on validation problems")
    if any(is_earlier for found in curves.values() for curve in found for *_, is_earlier in curve):
        handles.append(Line2D([], [], color="#666666", linestyle=EARLIER, label="earlier problems\n(data.schedule)"))
    figure.legend(handles=handles, loc="outside right upper", frameon=False, handlelength=2.8)
    with temporary_folder(path.parent) as folder:
        figure.savefig(folder / path.name, dpi=150)
        (folder / path.name).replace(path)
    pyplot.close(figure)
    return True


def _looks(names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """The colour and style of each row."""
    distinct = list(dict.fromkeys(names))
    count = len(COLOURS)
    return {
        name: {"color": COLOURS[number % count], "linestyle": STYLES[number // count % len(STYLES)]}
        for number, name in enumerate(distinct)
    }


def _draw(axes: Any, curve: Sequence[tuple[int, float, bool]], look: Mapping[str, Any]) -> None:
    """Draws one run: the epochs on its own problems in the style of its row, those before them dotted."""
    for is_earlier, style in ((True, EARLIER), (False, look["linestyle"])):
        points = [(updates, accuracy) for updates, accuracy, earlier in curve if earlier is is_earlier]
        if points:
            # A run with a single validation would be an invisible line.
            marker = "o" if len(points) == 1 else ""
            axes.plot(
                *zip(*points, strict=True),
                color=look["color"],
                linestyle=style,
                linewidth=1,
                alpha=0.8,
                marker=marker,
                markersize=4,
            )


def _curve(entry: Entry) -> list[tuple[int, float, bool]]:
    """Updates, accuracy, and whether the problems were earlier ones than the run's own, of each validation of a run."""
    run = RunFolder(_place(entry))
    try:
        lines = [line for line in read_metrics(run.metrics) if "eval/accuracy" in line]
    except (OSError, CheckpointError):
        # The table must not depend on the folders of runs, which users may remove.
        return []
    phases = [line.get("eval/data_phase", 0) for line in lines]
    last = max(_num_entries(run.config), *phases, 0)
    return [
        (int(line["global_step"]), float(line["eval/accuracy"]), phase < last)
        for line, phase in zip(lines, phases, strict=True)
    ]


def _place(entry: Entry) -> Path:
    """The folder of the run itself, also if the folder of the sweep has been moved since."""
    run = Path(str((entry.result or {}).get("run", "")))
    after = [index for index, part in enumerate(run.parts) if part == entry.folder.name]
    return entry.folder.joinpath(*run.parts[after[-1] + 1 :]) if after else run


def _num_entries(config: Path) -> int:
    """The number of entries of ``data.schedule`` in the configuration of a run; 0 if it cannot be read."""
    with suppress(OSError, yaml.YAMLError, KeyError, TypeError):
        return len(yaml.safe_load(config.read_text(encoding="utf-8"))["data"]["schedule"] or ())
    return 0
