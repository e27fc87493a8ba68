"""The tables of further tests, and links to probes, below the main table of each task."""

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

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
from coconut_ds.studies.further_tests import folder_of_test
from coconut_ds.studies.records import Row


def lines_of_tests(rows: Sequence[Row], baseline: str | None) -> dict[str, list[Line]]:
    """The rows of each further test, in the order of the study, compared with their baselines.

    Args:
        rows: of all tasks.
        baseline: the row that others are compared with; None: what the sweep was started with.
    """
    return {
        name: lines_of([row.on_test(name) for row in rows if name in row.tests], baseline) for name in _titles(rows)
    }


def test_tables(rows: Sequence[Row], task: str, lines: Mapping[str, Sequence[Line]]) -> list[str]:
    """A table in Markdown for each further test of a task.

    Args:
        rows: of all tasks.
        task: name of the task.
        lines: what ``lines_of_tests`` returns.
    """
    own = [row for row in rows if row.task == task]
    parts = []
    for name, title in _titles(own).items():
        asked = [row for row in own if name in row.tests]
        what = f"Test `{name}`" + (f": {title}" if title != name else "")
        if any(entry.by_thoughts(name) for row in asked for entry in row.by_seed.values()):
            what += "; accuracy in % by number of thoughts or pause tokens, mean over seeds"
            table = _table_by_thoughts(asked, name)
        else:
            table = _table([line for line in lines[name] if line.row.task == task])
        parts.append("\n".join([what, "", *table]) + "\n")
    return parts


def _titles(rows: Sequence[Row]) -> dict[str, str]:
    return {name: title for row in rows for name, title in row.tests.items()}


def _table(lines: Sequence[Line]) -> list[str]:
    seeds = sorted({seed for line in lines for seed in line.row.by_seed})
    is_compared = any(line.against for line in lines)
    headings = ["run", "accuracy, %", *(f"seed {seed}" for seed in seeds), *(COMPARED if is_compared else [])]
    made = []
    for line in lines:
        compared = compared_cells(line.against) if is_compared else []
        made.append([f"`{line.row.name}`", mean_text(line.scores), *seed_cells(line.row, seeds), *compared])
    return markdown_table(headings, made)


def _table_by_thoughts(rows: Sequence[Row], name: str) -> list[str]:
    found = {row.name: [entry.by_thoughts(name) for entry in row.by_seed.values()] for row in rows}
    numbers = sorted({number for each in found.values() for one in each for number in one})
    made = [
        [f"`{row}`", *(mean_text([100 * one[number] for one in each if number in one]) for number in numbers)]
        for row, each in found.items()
    ]
    return markdown_table(["run", *map(str, numbers)], made)


def probe_links(rows: Sequence[Row], task: str, folder: Path) -> list[str]:
    """The folders of the probes of a task's runs, as a paragraph of links that are relative to ``folder``; or none."""
    links = [
        f"* `{row.name}`, seed {seed}: [{name}]({quote(Path(os.path.relpath(path, folder)).as_posix(), safe='/=,+')})\n"
        for row in rows
        if row.task == task
        for seed, entry in sorted(row.by_seed.items())
        for name, path in entry.probes.items()
    ]
    return ["Probes:\n\n" + "".join(links)] if links else []


def tests_csv(rows: Sequence[Row]) -> str:
    """One line for each run and further test, or for each number of thoughts of one; accuracies from 0 to 1."""
    made = []
    for row in rows:
        for seed, entry in sorted(row.by_seed.items()):
            for name in entry.tests:
                folder, several = entry.folder / folder_of_test(name), entry.by_thoughts(name)
                scores: Iterable[tuple[Any, Any]] = several.items() if several else [("", entry.on_test(name).accuracy)]
                made += [[row.task, row.name, seed, name, *score, folder] for score in scores]
    return csv_text(["task", "run", "seed", "test", "thoughts", "accuracy", "folder"], made)
