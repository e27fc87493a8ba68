"""``python -m coconut_ds.probe study``: trains small models and asks whether their thoughts are the steps replaced.

Two tasks, each with and without thoughts and with pauses in their place, the same curriculum for all: sums of four
digits modulo 10 with one thought a step, and the products of ``make demo`` with two. What is trained and measured
already is left alone, so the same line carries on. Writes ``tables.md``, and for each model JSON, CSV and PNG.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from coconut_ds.files import write_whole
from coconut_ds.settings.compose import compose_eval_config
from coconut_ds.studies.harness import data_overrides, quoted
from coconut_ds.studies.methods import TASKS, TableCell, run_all

METHODS = ("coconut", "no_thoughts", "pause_as_thought")
MORE = {"modular_sum": ["c_thought=1"], "permutation_product": []}
"""Overrides beside those of the task. One thought a step is the plainest case."""
ASKED, TABLES = "asked.json", "tables.md"
"""What a model was measured with, and what was found; the first is written last."""


def main(argv: Sequence[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(
        prog="python -m coconut_ds.probe study",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--out", type=Path, default=Path("outputs/probing"))
    parser.add_argument("--tasks", nargs="+", choices=MORE, default=list(MORE))
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--lanes", type=int, default=2, help="trainings at a time, each on one core (%(default)s)")
    parser.add_argument("--problems", type=int, default=300, help="test problems (%(default)s)")
    parser.add_argument("--fit", type=int, default=1000, help="problems that probes are fit on (%(default)s)")
    parser.add_argument("--draws", type=int, default=1, help="of noise and donors (%(default)s)")
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="overrides for all trainings")
    options = parser.parse_args(argv)
    parts = []
    for task in options.tasks:
        cells = [TableCell(task, method, seed) for seed in options.seeds for method in options.methods]
        done, failed = run_all(cells, options.out / "runs", [*MORE[task], *options.set], options.lanes)
        for cell, error in failed.items():
            sys.stderr.write(f"error: {cell}: {error}\n")
        if failed:
            return 1
        for cell in cells:
            result = done[cell]
            parts.append(
                f"## {TASKS[task].words}: {cell.method}, seed {cell.seed}\n\n"
                f"Chance {TASKS[task].chance:.1%}; accuracy on 1,000 test problems {result['accuracy']:.1%}.\n\n"
                + measure_cell(cell, Path(result["run"]), data_overrides(result["overrides"]), options)
            )
            write_whole(options.out / TABLES, "\n".join(parts))
    sys.stdout.write("\n".join(parts) + f"\n{options.out / TABLES}\n")
    return 0


def measure_cell(cell: TableCell, run: Path, data: Sequence[str], options: argparse.Namespace) -> str:
    """Measures one model and writes what was found; returns its tables."""
    # Imported here, so that --help needs no torch.
    from coconut_ds.data.sources import open_source
    from coconut_ds.probing.measures import measure_checkpoint, summary, write_measured
    from coconut_ds.reasoner import load_reasoner

    checkpoint = json.loads((run / "summary.json").read_text(encoding="utf-8"))["last_checkpoint"]
    out = options.out / cell.task / cell.method / f"seed_{cell.seed}"
    asked = {"checkpoint": checkpoint, "problems": options.problems, "fit": options.fit, "draws": options.draws}
    if (out / ASKED).is_file() and json.loads((out / ASKED).read_text(encoding="utf-8")) == asked:
        return (out / TABLES).read_text(encoding="utf-8")
    out.mkdir(parents=True, exist_ok=True)
    config = compose_eval_config([f"checkpoint={quoted(checkpoint)}", *data, f"seed={cell.seed}"])
    source = open_source(config.data, cell.seed)
    scored = source.test()[: options.problems]
    known = {problem.question for problem in scored}
    # An epoch that no training comes to.
    fit = list({p.question: p for p in source.train(10**6) if p.question not in known}.values())[: options.fit]
    made = measure_checkpoint(
        load_reasoner(checkpoint), fit, scored, options.draws, cell.seed, config.data.max_new_tokens
    )
    write_measured(made, out, f"{TASKS[cell.task].words}, {cell.method}")
    write_whole(out / TABLES, summary(made))
    write_whole(out / ASKED, json.dumps(asked) + "\n")
    return summary(made)
