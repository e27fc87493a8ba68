"""``python -m coconut_ds.compare``: compares all methods on small tasks with several seeds.

All methods make the same number of updates on the same problems, with the configuration ``training=demo``. Methods with
a curriculum move on to the next stage when the current one is mastered, or after ten epochs. Accuracy is measured with
the last checkpoint on 1,000 test problems that are not used in training. The same command continues a comparison that
was stopped (see ``studies/cells.py``).

Writes ``table.md``, ``accuracy.png`` and the runs to the folder ``--out``.
"""

import argparse
import statistics
from collections.abc import Sequence
from typing import Any

from coconut_ds.cli.streams import prepare_streams
from coconut_ds.methods import METHODS
from coconut_ds.studies.cells import Cell, accuracy_columns, add_options, cells_of, render_tables, run_table

ROWS = {name: (f"method={name}",) for name in METHODS}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the comparison from the command line and returns the exit code: 1 if a run fails."""
    prepare_streams(outlives_readers=True)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser, "outputs/compare", ROWS, "--methods")
    options = parser.parse_args(argv)
    return run_table(cells_of(options, ROWS), options, render_table)


def render_table(done: dict[Cell, dict[str, Any]], methods: Sequence[str]) -> str:
    """The results in Markdown, one table per task."""
    return render_tables(done, methods, ["`method=`"], ["last stage", "latents", "seconds"], _row)


def _row(method: str, results: Sequence[dict[str, Any] | None]) -> str:
    there = [result for result in results if result is not None]
    stages = sorted({result["stage"] for result in there})
    latents = sorted({result["num_thoughts"] + result["num_pauses"] for result in there})
    seconds = statistics.median(result["duration_s"] for result in there)
    kind = "" if latents == [0] else " pauses" if METHODS[method].pauses else " thoughts"
    return f"| `{method}` | {accuracy_columns(results)} | {_range(stages)} | {_range(latents)}{kind} | {seconds:.0f} |"


def _range(values: Sequence[int]) -> str:
    return str(values[0]) if len(values) == 1 else f"{values[0]}–{values[-1]}"


if __name__ == "__main__":
    raise SystemExit(main())
