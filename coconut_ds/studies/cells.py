"""What the tables of a sweep share: lines with their comparison, cells in Markdown, and CSV text."""

import csv
import io
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from coconut_ds.studies.comparing import Against, against
from coconut_ds.studies.records import Row, baseline_of

COMPARED = ["against", "difference", "p (seeds)", "p (problems)"]
"""Headings of the cells that compare a row with its baseline."""


@dataclass(frozen=True)
class Line:
    """A row with what the table says about it."""

    row: Row
    against: Against | None

    @property
    def scores(self) -> list[float]:
        """Accuracies in percent."""
        return [100 * (entry.accuracy or 0.0) for entry in self.row.done.values()]

    def values(self, key: str) -> list[Any]:
        """Values of the results, by seed."""
        return [(entry.result or {}).get(key) for entry in self.row.done.values()]


def lines_of(rows: Sequence[Row], baseline: str | None) -> list[Line]:
    """The rows, each compared with its baseline.

    Args:
        rows: of one or of several tasks.
        baseline: the row that others are compared with; None: what the sweep was started with.
    """
    made = []
    for row in rows:
        other = baseline_of(row, rows, baseline or row.shown["baseline"])
        made.append(Line(row, None if other is None else against(row, other)))
    return made


def mean_text(scores: Sequence[float]) -> str:
    """Mean ± standard deviation; a dash without values."""
    if not scores:
        return "–"
    spread = f" ± {statistics.stdev(scores):.1f}" if len(scores) > 1 else ""
    return f"{statistics.mean(scores):.1f}{spread}"


def seed_cells(row: Row, seeds: Sequence[int]) -> list[str]:
    """The accuracy in percent with each seed; a dash for a run that is not finished."""
    each = {seed: 100 * (entry.accuracy or 0.0) for seed, entry in row.done.items()}
    return [f"{each[seed]:.1f}" if seed in each else "–" for seed in seeds]


def compared_cells(one: Against | None) -> list[str]:
    """The cells below ``COMPARED``."""
    if one is None:
        return [""] * len(COMPARED)
    p_values = ["–" if p is None else "< 0.0001" if p < 1e-4 else f"{p:.2g}" for p in (one.p_seeds, one.p_problems)]
    return [f"`{one.baseline}`", f"{100 * one.difference:+.1f}", *p_values]


def markdown_table(headings: Sequence[str], lines: Sequence[Sequence[str]]) -> list[str]:
    """The lines of a table in Markdown."""
    return [f"| {' | '.join(headings)} |", f"|{'---|' * len(headings)}", *(f"| {' | '.join(one)} |" for one in lines)]


def csv_text(headings: Sequence[str], lines: Sequence[Sequence[Any]]) -> str:
    """A table as CSV."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(headings)
    writer.writerows(lines)
    return text.getvalue()
