"""Draws accuracy against the number of samples: pass@k and the majority vote of k samples, with their intervals."""

import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from coconut_ds.evaluation.picture import ACCURACY_INCHES, DPI, WIDTH_INCHES, draw_shares, escaped, fit_shares, style

CURVES = {"pass_at": ("pass@k", "#0072B2", "o"), "majority_of": ("majority vote of k", "#D55E00", "s")}
"""Keys of ``samples.sample_scores``, with label, colour and marker."""
APART = 0.02
"""The two curves are moved apart by this share of the width, so that their intervals do not cover each other."""


def draw_samples(scores: Mapping[str, Any], path: Path, title: str) -> None:
    """Writes a PNG 900 pixels wide.

    Args:
        scores: what ``samples.sample_scores`` returns.
        path: the PNG file; its folder must exist.
        title: title of the figure.
    """
    # Imported here because matplotlib is slow to import.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH_INCHES, ACCURACY_INCHES), layout="constrained")
    axes = figure.subplots()
    counts = [int(count) for count in scores["pass_at"]]
    # The horizontal axis is logarithmic.
    reach = counts[-1] / counts[0]
    axes.set_xscale("log", base=2)
    curves = {key: [(one["share"], *one["share_95"]) for one in scores[key].values()] for key in CURVES}
    fit_shares(axes, [share for points in curves.values() for point in points for share in point])
    for number, (key, (label, colour, marker)) in enumerate(CURVES.items()):
        moved = reach ** (APART * (number - 0.5))
        draw_shares(axes, [count * moved for count in counts], curves[key], colour, marker, label)
    axes.set_xticks(counts, labels=[str(count) for count in counts])
    axes.minorticks_off()
    margin = max(reach, 2) ** 0.06
    axes.set_xlim(counts[0] / margin, counts[-1] * margin)
    axes.set_xlabel("number of samples k")
    axes.set_title(escaped(textwrap.fill(title, 80)), fontsize=11, loc="left")
    axes.legend(frameon=False, fontsize=9)
    style(axes, "share of problems, 95% interval")
    figure.savefig(path, dpi=DPI, format="png")
