"""The table of a sweep: Markdown, CSV and a picture, from what is on the disk."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from coconut_ds.files import write_whole
from coconut_ds.settings.overrides import Override
from coconut_ds.studies.cells import (
    COMPARED,
    Line,
    compared_cells,
    csv_text,
    lines_of,
    markdown_table,
    mean_text,
    seed_cells,
)
from coconut_ds.studies.further_table import lines_of_tests, probe_links, test_tables, tests_csv
from coconut_ds.studies.records import Row, read_rows

MARKDOWN, CSV, RUNS, TESTS = "table.md", "table.csv", "runs.csv", "tests.csv"
PICTURE, CURVES = "table.png", "curves.png"


@dataclass(frozen=True)
class Table:
    """A table that has been written."""

    markdown: str
    files: tuple[Path, ...]
    has_failures: bool


def write_table(folder: Path, baseline: str | None = None) -> Table:
    """Makes the table of a sweep's folder, and writes it there.

    Args:
        folder: ``sweep.out``.
        baseline: the row that others are compared with; None: what the sweep was started with.

    Raises:
        ConfigError: no sweep has run in this folder.
    """
    rows = read_rows(folder)
    lines = lines_of(rows, baseline)
    write_whole(folder / CSV, _rows_csv(lines))
    write_whole(folder / RUNS, _runs_csv(rows))
    markdown = _markdown(lines, baseline, folder)
    write_whole(folder / MARKDOWN, markdown)
    names = [MARKDOWN, CSV, RUNS]
    if any(row.tests for row in rows):
        write_whole(folder / TESTS, tests_csv(rows))
        names.append(TESTS)
    if done := [row for row in rows if row.done]:
        # Imported here, since matplotlib takes a second to load.
        from coconut_ds.studies.curves import draw_curves
        from coconut_ds.studies.picture import draw_rows

        draw_rows(done, folder / PICTURE)
        names += [PICTURE, *([CURVES] if draw_curves(done, folder / CURVES) else [])]
    failed = any(entry.status == "failed" for row in rows for entry in row.by_seed.values())
    return Table(markdown, tuple(folder / name for name in names), failed)


def _markdown(lines: Sequence[Line], baseline: str | None, folder: Path) -> str:
    rows, parts = [line.row for line in lines], []
    tests = lines_of_tests(rows, baseline)
    compared = [*lines, *(line for test in tests.values() for line in test)]
    for task in dict.fromkeys(line.row.task for line in lines):
        own = [line for line in lines if line.row.task == task]
        shown = own[0].row.shown
        title = shown["title"] + (f"; chance {shown['chance']:.1%}" if shown["chance"] is not None else "")
        parts.append("\n".join([*([title, ""] if title else []), *_table(own)]) + "\n")
        parts += [*test_tables(rows, task, tests), *probe_links(rows, task, folder)]
    named = baseline or rows[-1].shown["baseline"]
    if any(line.against for line in compared):
        parts.append(_comparisons(compared))
    elif named:
        parts.append(f"Nothing is compared with the baseline {named}: no such row, or no seed that two rows have.\n")
    parts += [text for text in (_failures(lines), _unfinished(lines)) if text]
    return "\n".join(parts)


def _table(lines: Sequence[Line]) -> list[str]:
    """A task's table in Markdown."""
    seeds = sorted({seed for line in lines for seed in line.row.by_seed})
    has_paper, has_tests = any(line.row.shown["paper"] for line in lines), any(line.against for line in lines)
    headings = ["run", "accuracy, %", *(["paper"] if has_paper else []), *(f"seed {seed}" for seed in seeds)]
    headings += COMPARED if has_tests else []
    headings += ["updates", "last stage", "latents", "seconds"]
    made = []
    for line in lines:
        cells = [f"`{line.row.name}`", mean_text(line.scores)]
        cells += [line.row.shown["paper"] or ""] if has_paper else []
        cells += seed_cells(line.row, seeds)
        cells += compared_cells(line.against) if has_tests else []
        made.append([*cells, *_run_cells(line)])
    return markdown_table(headings, made)


def _run_cells(line: Line) -> list[str]:
    if not line.scores:
        return ["–"] * 4
    latents = [thoughts + pauses for thoughts, pauses in _latents(line)]
    kind = "" if not any(latents) else " pauses" if any(pauses for _, pauses in _latents(line)) else " thoughts"
    seconds = statistics.median(line.values("duration_s"))
    return [_updates(line), _range(line.values("stage")), f"{_range(latents)}{kind}", f"{seconds:.0f}"]


def _latents(line: Line) -> list[tuple[int, int]]:
    return list(zip(line.values("num_thoughts"), line.values("num_pauses"), strict=True))


def _updates(line: Line) -> str:
    """Updates of each seed; with ``stop_at``, a dash after those that ended without being solved."""
    found = []
    for entry in line.row.done.values():
        result: Mapping[str, Any] = entry.result or {}
        stops = [one.value for one in map(Override.read, result["overrides"]) if one.key.endswith("stop_at")]
        is_open = bool(stops) and stops[-1] not in (None, "null") and result["wholly_right"] < float(stops[-1] or 0)
        found.append(f"{result['updates']}{' (not solved)' if is_open else ''}")
    return found[0] if len(set(found)) == 1 else ", ".join(found)


def _range(values: Sequence[int]) -> str:
    low, high = min(values), max(values)
    return str(low) if low == high else f"{low}–{high}"


def _comparisons(lines: Sequence[Line]) -> str:
    counts = sorted({line.against.seeds for line in lines if line.against})
    return (
        f"Differences in points from the row under *against*, over {_range(counts)} seeds that both have. p (seeds): "
        "paired t test over seeds, whether other seeds would show the difference. p (problems): McNemar's exact test "
        "of the two models of each seed on the same problems; the largest p-value of the seeds. Neither is corrected "
        "for the number of rows.\n"
    )


def _failures(lines: Sequence[Line]) -> str:
    made = []
    for line in lines:
        for seed, entry in sorted(line.row.by_seed.items()):
            if entry.status == "failed":
                record = entry.record
                made.append(f"* {line.row}, seed {seed}: {record.get('error', '')}\n")
                if record.get("lines"):
                    made.append("  ```\n" + "".join(f"  {text}\n" for text in record["lines"]) + "  ```\n")
    return "Failed:\n\n" + "".join(made) if made else ""


def _unfinished(lines: Sequence[Line]) -> str:
    names = [
        f"{line.row}, seed {seed} ({entry.status})"
        for line in lines
        for seed, entry in sorted(line.row.by_seed.items())
        if entry.status in ("started", "stopped")
    ]
    return f"Not finished; the same command continues: {'; '.join(names)}.\n" if names else ""


def _rows_csv(lines: Sequence[Line]) -> str:
    """One line for each row of the table; accuracies and differences from 0 to 1."""
    headings = ["task", "run", "finished", "mean", "sd", "paper", "against", "difference", "p_seeds", "p_problems"]
    made = []
    for line in lines:
        scores, one = [score / 100 for score in line.scores], line.against
        mean = statistics.mean(scores) if scores else ""
        spread = statistics.stdev(scores) if len(scores) > 1 else ""
        tests = ["", "", "", ""] if one is None else [one.baseline, one.difference, one.p_seeds, one.p_problems]
        seconds = statistics.median(line.values("duration_s")) if scores else ""
        made.append([line.row.task, line.row.name, len(scores), mean, spread, line.row.shown["paper"], *tests, seconds])
    return csv_text([*headings, "median_duration_s"], made)


def _runs_csv(rows: Sequence[Row]) -> str:
    """One line for each run."""
    keys = ["accuracy", "updates", "stage", "num_thoughts", "num_pauses", "duration_s", "evaluation_s"]
    made = [
        [row.task, row.name, seed, entry.status, *((entry.result or {}).get(key) for key in keys), entry.folder]
        for row in rows
        for seed, entry in sorted(row.by_seed.items())
    ]
    return csv_text(["task", "run", "seed", "status", *keys, "folder"], made)
