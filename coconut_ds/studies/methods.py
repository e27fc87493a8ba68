"""``python -m coconut_ds.compare``: compares all methods on small tasks with several seeds.

The comparison can be stopped and continued with the same command: each finished run stores a ``result.json`` in its
folder and is not repeated unless its overrides or the code have changed. Nothing is replaced: a run or table with
another signature gets a folder of its own, whose name ends with it.

All methods make the same number of updates on the same problems, with the configuration ``training=demo``. Methods with
a curriculum move on to the next stage when the current one is mastered, or after ten epochs. Accuracy is measured with
the last checkpoint on 1,000 test problems that are not used in training.

Writes ``table.md``, ``accuracy.png`` and the runs to the folder ``--out``.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from coconut_ds.cli.streams import prepare_streams
from coconut_ds.files import shell_word, write_whole
from coconut_ds.methods import METHODS
from coconut_ds.results import ResultFolder, free_or_own, places_to_read
from coconut_ds.settings.overrides import text_override
from coconut_ds.strict_json import JsonError, read_json
from coconut_ds.studies.harness import (
    HarnessError,
    data_overrides,
    launch_run,
    score_on_test,
    study_identity,
)

RESULT, TABLE, PICTURE = "result.json", "table.md", "accuracy.png"
COMMON = ("run=demo", "model=gpt2_scratch_tiny", "tokenizer=dataset", "training=demo", "tokens_per_epoch=1")


@dataclass(frozen=True)
class Task:
    """A task that the methods are compared on."""

    overrides: tuple[str, ...]
    """Configuration overrides that select the task."""
    chance: float
    """Accuracy of guessing, from 0 to 1."""
    words: str
    """Description for tables and figures."""


TASKS = {
    "modular_sum": Task(
        ("data=modular_sum", "max_latent_stage=3", "num_epochs=30"), 1 / 10, "sums of four digits modulo 10"
    ),
    "permutation_product": Task(
        ("data=permutation_product", "max_latent_stage=4", "num_epochs=50"),
        1 / 6,
        "products of five permutations of three elements",
    ),
}


@dataclass(frozen=True)
class TableCell:
    """One training run of the table."""

    task: str
    method: str
    seed: int

    def __str__(self) -> str:
        return f"{self.task}/{self.method}/seed {self.seed}"

    def folder(self, out: Path) -> Path:
        """Folder of the run and its result, unless it is in use."""
        return out / self.task / self.method / f"seed_{self.seed}"

    def results(self, out: Path, more: Sequence[str]) -> ResultFolder:
        """Folder of the run and its result: ``folder``, or one beside it if that is in use."""
        return free_or_own(ResultFolder(self.folder(out), study_identity(overrides=self.overrides(more)), (RESULT,)))

    def overrides(self, more: Sequence[str]) -> list[str]:
        """The run's configuration overrides, except for its output folder; ``more`` is appended."""
        own = [f"method={self.method}", f"run.seed={self.seed}", f"run.name={self.method}"]
        return [*COMMON, *TASKS[self.task].overrides, *own, *more]


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the comparison from the command line and returns the exit code: 1 if a run fails."""
    prepare_streams(outlives_readers=True)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("outputs/compare"))
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--lanes", type=int, default=2, help="parallel runs, one core each (%(default)s)")
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="overrides for all runs")
    options = parser.parse_args(argv)
    cells = [TableCell(t, m, s) for t in options.tasks for s in options.seeds for m in options.methods]
    done, failed = run_all(cells, options.out, options.set, options.lanes)
    table = render_table(done, options.methods)
    identity = study_identity(cells={str(cell): cell.overrides(options.set) for cell in cells})
    results = free_or_own(ResultFolder(options.out, identity, (PICTURE, TABLE)), options.out / "table")
    with results.replacing() as out:
        draw_accuracies(done, options.methods, out / PICTURE)
        write_whole(out / TABLE, table)
    written = [shell_word(results.path / name) for name in (TABLE, PICTURE)]
    sys.stdout.write(f"\n{table}\n{', '.join(written)}\n")
    for cell, error in failed.items():
        sys.stderr.write(f"error: {cell}: {error}\n")
    return 1 if failed else 0


def run_all(
    cells: Sequence[TableCell], out: Path, more: Sequence[str], lanes: int
) -> tuple[dict[TableCell, dict[str, Any]], dict[TableCell, HarnessError]]:
    """Trains and evaluates all cells, ``lanes`` at the same time.

    Returns the results of the cells that succeeded, and the errors of those that failed.
    """
    done = {cell: result for cell in cells if (result := kept_result(cell, out, more)) is not None}
    missing = [cell for cell in cells if cell not in done]
    if done:
        sys.stdout.write(f"{len(done)} of {len(cells)} runs are already finished\n")
        if unknown := sum("identity" not in result for result in done.values()):
            sys.stdout.write(
                f"{unknown} of them are of an earlier version of this program, which did not store the code\n"
            )
    failed: dict[TableCell, HarnessError] = {}
    with ThreadPoolExecutor(lanes) as pool, tqdm(total=len(missing), unit="run", disable=None) as bar:
        started = {pool.submit(run_cell, cell, out, more): cell for cell in missing}
        for future in as_completed(started):
            cell, error = started[future], future.exception()
            if isinstance(error, HarnessError):
                failed[cell] = error
            else:
                done[cell] = future.result()
                tqdm.write(f"{cell}: {done[cell]['accuracy']:.1%} in {done[cell]['duration_s']:.0f} s", file=sys.stdout)
            bar.update()
    return done, failed


def kept_result(cell: TableCell, out: Path, more: Sequence[str]) -> dict[str, Any] | None:
    """The stored result of a finished run with the same overrides and code; None if there is none.

    A result of an earlier version of this program, which did not store the code, counts too.
    """
    for path in (place / RESULT for place in places_to_read(cell.results(out, more), cell.folder(out))):
        if path.is_file():
            try:
                result = read_json(path)
            except JsonError:
                # Damaged by a full disk or a crash of the machine; the run is repeated.
                continue
            if isinstance(result, dict) and result.get("overrides") == cell.overrides(more):
                return result
    return None


def run_cell(cell: TableCell, out: Path, more: Sequence[str]) -> dict[str, Any]:
    """Trains and evaluates one cell. ``result.json`` is written last, so that it marks a finished run."""
    results, overrides = cell.results(out, more), cell.overrides(more)
    folder = results.path
    results.take()
    with (folder / "log.txt").open("w", encoding="utf-8", buffering=1) as log:
        run = launch_run(
            str(cell), [*overrides, text_override("run.save_path", folder)], log.write, with_deepspeed=False
        )
    evaluated = time.perf_counter()
    data = [*data_overrides(overrides), f"seed={cell.seed}", "batch_size=500"]
    accuracy = score_on_test(run, data, folder / "evaluation")
    last = run.evaluations()[-1]
    result = {
        "overrides": overrides,
        "accuracy": accuracy,
        "stage": last["eval/stage"],
        "num_thoughts": last["eval/num_thoughts"],
        "num_pauses": last["eval/num_pauses"],
        "updates": run.summary["updates"],
        "stage_switches": run.summary["stage_switches"],
        "duration_s": round(run.duration_s, 1),
        "evaluation_s": round(time.perf_counter() - evaluated, 1),
        "run": str(run.folder),
        **results.identity.as_dict(),
    }
    write_whole(folder / RESULT, json.dumps(result, indent=2) + "\n")
    return result


def render_table(done: dict[TableCell, dict[str, Any]], methods: Sequence[str]) -> str:
    """The results in Markdown, one table per task."""
    parts = []
    for task in dict.fromkeys(cell.task for cell in done):
        seeds = sorted({cell.seed for cell in done if cell.task == task})
        lines = [
            f"{TASKS[task].words}; chance {TASKS[task].chance:.1%}",
            "",
            f"| `method=` | mean ± sd | {' | '.join(f'seed {s}' for s in seeds)} | last stage | latents | seconds |",
            f"|---|---|{'---|' * len(seeds)}---|---|---|",
        ]
        for method in methods:
            results = {c.seed: r for c, r in done.items() if (c.task, c.method) == (task, method)}
            if results:
                lines.append(_row(method, [results.get(seed) for seed in seeds]))
        parts.append("\n".join(lines) + "\n")
    return "\n".join(parts)


def _row(method: str, results: Sequence[dict[str, Any] | None]) -> str:
    there = [result for result in results if result is not None]
    scores = [100 * result["accuracy"] for result in there]
    spread = f" ± {statistics.stdev(scores):.1f}" if len(scores) > 1 else ""
    each = " | ".join("–" if result is None else f"{100 * result['accuracy']:.1f}" for result in results)
    stages = sorted({result["stage"] for result in there})
    latents = sorted({result["num_thoughts"] + result["num_pauses"] for result in there})
    seconds = statistics.median(result["duration_s"] for result in there)
    kind = "" if latents == [0] else " pauses" if METHODS[method].pauses else " thoughts"
    return (
        f"| `{method}` | {statistics.mean(scores):.1f}{spread} | {each} | {_range(stages)} | {_range(latents)}{kind} | "
        f"{seconds:.0f} |"
    )


def _range(values: Sequence[int]) -> str:
    return str(values[0]) if len(values) == 1 else f"{values[0]}–{values[-1]}"


def draw_accuracies(done: dict[TableCell, dict[str, Any]], methods: Sequence[str], path: Path) -> None:
    """Draws the accuracies: one panel per task, one row per method, one dot per run."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    tasks = list(dict.fromkeys(cell.task for cell in done))
    if not tasks:
        return
    figure, panels = pyplot.subplots(
        1,
        len(tasks),
        figsize=(5.2 * len(tasks), 0.42 * len(methods) + 1.2),
        sharey=True,
        squeeze=False,
        layout="constrained",
    )
    rows = {method: len(methods) - row for row, method in enumerate(methods)}
    for axes, task in zip(panels[0], tasks, strict=True):
        cells = [cell for cell in done if cell.task == task]
        axes.axvline(TASKS[task].chance, color="black", linewidth=0.8, linestyle=":", label="chance")
        for row in rows.values():
            axes.axhline(row, color="#dddddd", linewidth=0.7, zorder=0)
        axes.scatter(
            [done[cell]["accuracy"] for cell in cells],
            [rows[cell.method] for cell in cells],
            s=48,
            color="#0072B2",
            alpha=0.7,
            clip_on=False,
            zorder=3,
        )
        axes.set(xlim=(0, 1), xlabel="accuracy on test problems", title=TASKS[task].words)
        axes.set_yticks(list(rows.values()), list(rows))
        axes.legend(loc="lower right", frameon=False)
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


if __name__ == "__main__":
    raise SystemExit(main())
