"""The table of a sweep: Markdown, CSV and a picture, from what is on the disk."""

import csv
import io
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from coconut_ds.files import write_whole
from coconut_ds.settings.overrides import Override
from coconut_ds.studies.comparing import Against, against
from coconut_ds.studies.records import Row, baseline_of, read_rows

MARKDOWN, CSV, RUNS, PICTURE = "table.md", "table.csv", "runs.csv", "table.png"


@dataclass(frozen=True)
class Table:
    """A table that has been written."""

    markdown: str
    files: tuple[Path, ...]
    has_failures: bool


@dataclass(frozen=True)
class _Line:
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


def write_table(folder: Path, baseline: str | None = None) -> Table:
    """Makes the table of a sweep's folder, and writes it there.

    Args:
        folder: ``sweep.out``.
        baseline: the row that others are compared with; None: what the sweep was started with.

    Raises:
        ConfigError: no sweep has run in this folder.
    """
    rows = read_rows(folder)
    lines = [_Line(row, _against(row, rows, baseline)) for row in rows]
    write_whole(folder / CSV, _rows_csv(lines))
    write_whole(folder / RUNS, _runs_csv(rows))
    markdown = _markdown(lines, baseline or rows[-1].shown["baseline"])
    write_whole(folder / MARKDOWN, markdown)
    names = [MARKDOWN, CSV, RUNS]
    if any(row.done for row in rows):
        # Imported here, since matplotlib takes a second to load.
        from coconut_ds.studies.picture import draw_rows

        draw_rows([row for row in rows if row.done], folder / PICTURE)
        names.append(PICTURE)
    failed = any(entry.status == "failed" for row in rows for entry in row.by_seed.values())
    return Table(markdown, tuple(folder / name for name in names), failed)


def _against(row: Row, rows: Sequence[Row], baseline: str | None) -> Against | None:
    other = baseline_of(row, rows, baseline or row.shown["baseline"])
    return None if other is None else against(row, other)


def _markdown(lines: Sequence[_Line], baseline: str | None) -> str:
    parts = []
    for task in dict.fromkeys(line.row.task for line in lines):
        own = [line for line in lines if line.row.task == task]
        shown = own[0].row.shown
        title = shown["title"] + (f"; chance {shown['chance']:.1%}" if shown["chance"] is not None else "")
        parts.append("\n".join([*([title, ""] if title else []), *_table(own)]) + "\n")
    if any(line.against for line in lines):
        parts.append(_tests(lines))
    elif baseline:
        parts.append(f"Nothing is compared with the baseline {baseline}: no such row, or no seed that two rows have.\n")
    parts += [text for text in (_failures(lines), _unfinished(lines)) if text]
    return "\n".join(parts)


def _table(lines: Sequence[_Line]) -> list[str]:
    """A task's table in Markdown."""
    seeds = sorted({seed for line in lines for seed in line.row.by_seed})
    has_paper, has_tests = any(line.row.shown["paper"] for line in lines), any(line.against for line in lines)
    headings = ["run", "accuracy, %", *(["paper"] if has_paper else []), *(f"seed {seed}" for seed in seeds)]
    headings += ["against", "difference", "p (seeds)", "p (problems)"] if has_tests else []
    headings += ["updates", "last stage", "latents", "seconds"]
    made = [f"| {' | '.join(headings)} |", f"|{'---|' * len(headings)}"]
    for line in lines:
        each = {seed: 100 * (entry.accuracy or 0.0) for seed, entry in line.row.done.items()}
        cells = [f"`{line.row.name}`", _mean(line.scores)]
        cells += [line.row.shown["paper"] or ""] if has_paper else []
        cells += [f"{each[seed]:.1f}" if seed in each else "–" for seed in seeds]
        cells += _test_cells(line.against) if has_tests else []
        made.append(f"| {' | '.join([*cells, *_run_cells(line)])} |")
    return made


def _mean(scores: Sequence[float]) -> str:
    if not scores:
        return "–"
    spread = f" ± {statistics.stdev(scores):.1f}" if len(scores) > 1 else ""
    return f"{statistics.mean(scores):.1f}{spread}"


def _test_cells(one: Against | None) -> list[str]:
    if one is None:
        return [""] * 4
    p_values = ["–" if p is None else "< 0.0001" if p < 1e-4 else f"{p:.2g}" for p in (one.p_seeds, one.p_problems)]
    return [f"`{one.baseline}`", f"{100 * one.difference:+.1f}", *p_values]


def _run_cells(line: _Line) -> list[str]:
    if not line.scores:
        return ["–"] * 4
    latents = [thoughts + pauses for thoughts, pauses in _latents(line)]
    kind = "" if not any(latents) else " pauses" if any(pauses for _, pauses in _latents(line)) else " thoughts"
    seconds = statistics.median(line.values("duration_s"))
    return [_updates(line), _range(line.values("stage")), f"{_range(latents)}{kind}", f"{seconds:.0f}"]


def _latents(line: _Line) -> list[tuple[int, int]]:
    return list(zip(line.values("num_thoughts"), line.values("num_pauses"), strict=True))


def _updates(line: _Line) -> str:
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


def _tests(lines: Sequence[_Line]) -> str:
    counts = sorted({line.against.seeds for line in lines if line.against})
    return (
        f"Differences in points from the row under *against*, over {_range(counts)} seeds that both have. p (seeds): "
        "paired t test over seeds, whether other seeds would show the difference. p (problems): McNemar's exact test "
        "of the two models of each seed on the same problems; the largest p-value of the seeds. Neither is corrected "
        "for the number of rows.\n"
    )


def _failures(lines: Sequence[_Line]) -> str:
    made = []
    for line in lines:
        for seed, entry in sorted(line.row.by_seed.items()):
            if entry.status == "failed":
                record = entry.record
                made.append(f"* {line.row}, seed {seed}: {record.get('error', '')}\n")
                if record.get("lines"):
                    made.append("  ```\n" + "".join(f"  {text}\n" for text in record["lines"]) + "  ```\n")
    return "Failed:\n\n" + "".join(made) if made else ""


def _unfinished(lines: Sequence[_Line]) -> str:
    names = [
        f"{line.row}, seed {seed} ({entry.status})"
        for line in lines
        for seed, entry in sorted(line.row.by_seed.items())
        if entry.status in ("started", "stopped")
    ]
    return f"Not finished; the same command continues: {'; '.join(names)}.\n" if names else ""


def _rows_csv(lines: Sequence[_Line]) -> str:
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
    return _csv([*headings, "median_duration_s"], made)


def _runs_csv(rows: Sequence[Row]) -> str:
    """One line for each run."""
    keys = ["accuracy", "updates", "stage", "num_thoughts", "num_pauses", "duration_s", "evaluation_s"]
    made = [
        [row.task, row.name, seed, entry.status, *((entry.result or {}).get(key) for key in keys), entry.folder]
        for row in rows
        for seed, entry in sorted(row.by_seed.items())
    ]
    return _csv(["task", "run", "seed", "status", *keys, "folder"], made)


def _csv(headings: Sequence[str], lines: Sequence[Sequence[Any]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(headings)
    writer.writerows(lines)
    return text.getvalue()
