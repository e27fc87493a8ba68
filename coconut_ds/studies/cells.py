"""Tables of small training runs: tasks, one cell for each run, and results that are kept.

A table can be stopped and continued with the same command: each finished run stores a ``result.json`` in its folder and
is not repeated unless its overrides or the code have changed. Nothing is replaced: a run or table with another
signature gets a folder of its own, whose name ends with it.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from coconut_ds.files import shell_word, write_whole
from coconut_ds.results import ResultFolder, free_or_own, places_to_read
from coconut_ds.settings.overrides import text_override
from coconut_ds.strict_json import JsonError, read_json
from coconut_ds.studies.harness import (
    HarnessError,
    TrainedRun,
    data_overrides,
    launch_run,
    score_on_test,
    study_identity,
)

RESULT, TABLE, PICTURE = "result.json", "table.md", "accuracy.png"
COMMON = ("run=demo", "model=gpt2_scratch_tiny", "tokenizer=dataset", "training=demo", "tokens_per_epoch=1")


@dataclass(frozen=True)
class Task:
    """A task that runs are compared on."""

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
class Cell:
    """One training run of a table."""

    task: str
    row: str
    """What is compared: the row of the table, and the run's name."""
    seed: int
    choices: tuple[str, ...]
    """Configuration overrides that make the row."""

    def __str__(self) -> str:
        return f"{self.task}/{self.row}/seed {self.seed}"

    def folder(self, out: Path) -> Path:
        """Folder of the run and its result, unless it is in use."""
        return out / self.task / self.row / f"seed_{self.seed}"

    def results(self, out: Path, more: Sequence[str]) -> ResultFolder:
        """Folder of the run and its result: ``folder``, or one beside it if that is in use."""
        return free_or_own(ResultFolder(self.folder(out), study_identity(overrides=self.overrides(more)), (RESULT,)))

    def overrides(self, more: Sequence[str]) -> list[str]:
        """The run's configuration overrides, except for its output folder; ``more`` is appended."""
        own = [*self.choices, f"run.seed={self.seed}", f"run.name={self.row}"]
        return [*COMMON, *TASKS[self.task].overrides, *own, *more]


def add_options(parser: argparse.ArgumentParser, out: str, rows: Collection[str], rows_option: str) -> None:
    """Adds the options that all tables have; ``rows`` are those that may be chosen by ``rows_option``."""
    parser.add_argument("--out", type=Path, default=Path(out))
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument(rows_option, dest="rows", nargs="+", choices=rows, default=list(rows))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--lanes", type=int, default=2, help="parallel runs, one core each (%(default)s)")
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="overrides for all runs")


def cells_of(options: argparse.Namespace, rows: Mapping[str, tuple[str, ...]]) -> list[Cell]:
    """The runs that the command line asks for; ``rows`` are the overrides that make each row."""
    return [Cell(t, row, s, rows[row]) for t in options.tasks for s in options.seeds for row in options.rows]


def run_table(
    cells: Sequence[Cell],
    options: argparse.Namespace,
    render: Callable[[dict[Cell, dict[str, Any]], Sequence[str]], str],
) -> int:
    """Runs the cells, and writes and prints their table.

    Args:
        cells: the runs of the table.
        options: see ``add_options``.
        render: makes the table, in Markdown, of the results and the names of the rows.

    Returns the exit code of the program: 1 if a run failed.
    """
    done, failed = run_all(cells, options.out, options.set, options.lanes)
    table = render(done, options.rows)
    identity = study_identity(cells={str(cell): cell.overrides(options.set) for cell in cells})
    results = free_or_own(ResultFolder(options.out, identity, (PICTURE, TABLE)), options.out / "table")
    with results.replacing() as out:
        draw_accuracies(done, options.rows, out / PICTURE)
        write_whole(out / TABLE, table)
    written = [shell_word(results.path / name) for name in (TABLE, PICTURE)]
    sys.stdout.write(f"\n{table}\n{', '.join(written)}\n")
    for cell, error in failed.items():
        sys.stderr.write(f"error: {cell}: {error}\n")
    return 1 if failed else 0


def run_all(
    cells: Sequence[Cell], out: Path, more: Sequence[str], lanes: int
) -> tuple[dict[Cell, dict[str, Any]], dict[Cell, HarnessError]]:
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
    failed: dict[Cell, HarnessError] = {}
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


def kept_result(cell: Cell, out: Path, more: Sequence[str]) -> dict[str, Any] | None:
    """The stored result of a finished run with the same overrides and code; None if there is none.

    A result of an earlier version of this program, which did not store the code, counts too.
    """
    for place in places_to_read(cell.results(out, more), cell.folder(out)):
        result = stored_result(place / RESULT, cell.overrides(more))
        if result is not None:
            return result
    return None


def stored_result(path: Path, overrides: Sequence[str]) -> dict[str, Any] | None:
    """The result of a finished run with these overrides; None if there is none, or the file is damaged."""
    try:
        result = read_json(path)
    except (OSError, JsonError):
        # A full disk or a crash of the machine may have damaged it; the run is repeated.
        return None
    return result if isinstance(result, dict) and result.get("overrides") == list(overrides) else None


def run_cell(cell: Cell, out: Path, more: Sequence[str]) -> dict[str, Any]:
    """Trains and evaluates one cell. ``result.json`` is written last, so that it marks a finished run."""
    results, overrides = cell.results(out, more), cell.overrides(more)
    folder = results.path
    run = launch_in(results, str(cell), overrides)
    evaluated = time.perf_counter()
    data = [*data_overrides(overrides), f"seed={cell.seed}", "batch_size=500"]
    accuracy = score_on_test(run, data, folder / "evaluation")
    last = run.evaluations()[-1]
    result = {
        "overrides": overrides,
        "accuracy": accuracy,
        "stage": last["eval/stage"],
        "wholly_right": last["eval/wholly_right"],
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


def launch_in(results: ResultFolder, label: str, overrides: Sequence[str]) -> TrainedRun:
    """Trains a run in the folder of its result, beside its log.

    Raises:
        HarnessError: the run failed.
    """
    results.take()
    folder = results.path
    with (folder / "log.txt").open("w", encoding="utf-8", buffering=1) as log:
        return launch_run(label, [*overrides, text_override("run.save_path", folder)], log.write, with_deepspeed=False)


def render_tables(
    done: Mapping[Cell, dict[str, Any]],
    rows: Sequence[str],
    names: Sequence[str],
    more: Sequence[str],
    row: Callable[[str, Sequence[dict[str, Any] | None]], str],
) -> str:
    """The results in Markdown, one table per task.

    Args:
        done: the results.
        rows: names of the rows, in the order of the table.
        names: headings of the columns before those of ``accuracy_columns``.
        more: headings of the columns after them.
        row: makes the line of a row of its name and its results, one for each seed; None: there is no result.
    """
    parts = []
    for task in dict.fromkeys(cell.task for cell in done):
        seeds = sorted({cell.seed for cell in done if cell.task == task})
        headings = [*names, "mean ± sd", *(f"seed {seed}" for seed in seeds), *more]
        title = f"{TASKS[task].words}; chance {TASKS[task].chance:.1%}"
        lines = [title, "", f"| {' | '.join(headings)} |", f"|{'---|' * len(headings)}"]
        for name in rows:
            results = {c.seed: r for c, r in done.items() if (c.task, c.row) == (task, name)}
            if results:
                lines.append(row(name, [results.get(seed) for seed in seeds]))
        parts.append("\n".join(lines) + "\n")
    return "\n".join(parts)


def accuracy_columns(results: Sequence[Mapping[str, Any] | None]) -> str:
    """Mean and standard deviation over seeds, then each seed, as columns of a table in percent."""
    scores = [100 * result["accuracy"] for result in results if result is not None]
    spread = f" ± {statistics.stdev(scores):.1f}" if len(scores) > 1 else ""
    each = " | ".join("–" if result is None else f"{100 * result['accuracy']:.1f}" for result in results)
    return f"{statistics.mean(scores):.1f}{spread} | {each}"


def draw_accuracies(done: Mapping[Cell, Mapping[str, Any]], rows: Sequence[str], path: Path) -> None:
    """Draws the accuracies: one panel per task, one line per row of the table, one dot per run."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    tasks = list(dict.fromkeys(cell.task for cell in done))
    if not tasks:
        return
    figure, panels = pyplot.subplots(
        1,
        len(tasks),
        figsize=(5.2 * len(tasks), 0.42 * len(rows) + 1.2),
        sharey=True,
        squeeze=False,
        layout="constrained",
    )
    heights = {row: len(rows) - number for number, row in enumerate(rows)}
    for axes, task in zip(panels[0], tasks, strict=True):
        cells = [cell for cell in done if cell.task == task]
        axes.axvline(TASKS[task].chance, color="black", linewidth=0.8, linestyle=":", label="chance")
        for height in heights.values():
            axes.axhline(height, color="#dddddd", linewidth=0.7, zorder=0)
        axes.scatter(
            [done[cell]["accuracy"] for cell in cells],
            [heights[cell.row] for cell in cells],
            s=48,
            color="#0072B2",
            alpha=0.7,
            clip_on=False,
            zorder=3,
        )
        axes.set(xlim=(0, 1), xlabel="accuracy on test problems", title=TASKS[task].words)
        axes.set_yticks(list(heights.values()), list(heights))
        axes.legend(loc="lower right", frameon=False)
    figure.savefig(path, dpi=150)
    pyplot.close(figure)
