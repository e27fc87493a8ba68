"""``python -m coconut_ds.studies.objectives``: compares the training objectives, with their controls, on small tasks.

A run ends when 99 % of the validation problems are entirely right in the last stage of its curriculum, or after as many
updates as the comparison of methods makes (1,500 for the sums, 2,500 for the products). All runs see the same problems
in the same order, with the configuration ``training=demo``. Accuracy is measured with the last checkpoint on 1,000 test
problems that are not used in training. The same command continues a comparison that was stopped (see
``studies/cells.py``).

Two kinds of controls show whether the thoughts matter: runs of the same objective with pause tokens in place of the
thoughts, where the objective permits it, and runs of the likelihood with pause tokens or with neither.

Writes ``table.md``, ``accuracy.png`` and the runs to the folder ``--out``.
"""

import argparse
import statistics
from collections.abc import Sequence
from typing import Any

from coconut_ds.cli.streams import prepare_streams
from coconut_ds.methods import METHODS
from coconut_ds.studies.cells import Cell, accuracy_columns, add_options, cells_of, render_tables, run_table

SOLVED = 0.99
"""Share of the validation problems that must be entirely right in the last stage for a run to count as solved."""
PAIRS = (
    ("likelihood", "coconut"),
    ("likelihood", "pause_as_thought"),
    ("likelihood", "no_thoughts"),
    ("codi", "coconut"),
    ("codi", "pause_as_thought"),
    ("sim_cot", "coconut"),
    ("sim_cot_codi", "coconut"),
    ("lotus", "coconut"),
    ("likelihood", "coconut_no_curriculum"),
    ("codi", "coconut_no_curriculum"),
    ("codi", "pause"),
    ("sim_cot", "coconut_no_curriculum"),
    ("sim_cot_codi", "coconut_no_curriculum"),
    ("lotus", "coconut_no_curriculum"),
)
"""Objective and method of each row; the methods at the end have no curriculum."""


def _choices(objective: str, method: str) -> tuple[str, ...]:
    """The overrides that make a row. Pause tokens have no hidden state that a projection could feed back."""
    feed = ("objective.feed=identity",) if objective == "codi" and METHODS[method].pauses else ()
    return (f"objective={objective}", f"method={method}", f"stop_at={SOLVED}", *feed)


ROWS = {f"{objective}-{method}": _choices(objective, method) for objective, method in PAIRS}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the comparison from the command line and returns the exit code: 1 if a run fails."""
    prepare_streams(outlives_readers=True)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser, "outputs/compare_objectives", ROWS, "--rows")
    options = parser.parse_args(argv)
    return run_table(cells_of(options, ROWS), options, render_table)


def render_table(done: dict[Cell, dict[str, Any]], rows: Sequence[str]) -> str:
    """The results in Markdown, one table per task."""
    return render_tables(done, rows, ["`objective=`", "`method=`"], ["updates until solved", "seconds"], _row)


def _row(row: str, results: Sequence[dict[str, Any] | None]) -> str:
    there = [result for result in results if result is not None]
    updates = ", ".join(str(result["updates"]) if result["wholly_right"] >= SOLVED else "–" for result in there)
    seconds = statistics.median(result["duration_s"] for result in there)
    objective, _, method = row.partition("-")
    return f"| `{objective}` | `{method}` | {accuracy_columns(results)} | {updates} | {seconds:.0f} |"


if __name__ == "__main__":
    raise SystemExit(main())
