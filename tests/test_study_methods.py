"""The comparisons of methods and of objectives: results that exist are kept, and tables show the results."""

import json
from pathlib import Path
from typing import Any

import pytest

from coconut_ds.methods import METHODS
from coconut_ds.settings.compose import compose_config
from coconut_ds.studies import cells, objectives
from coconut_ds.studies.cells import TASKS, Cell
from coconut_ds.studies.harness import HarnessError
from coconut_ds.studies.methods import ROWS, main, render_table

TINY = ["num_epochs=1", "size.train=64", "size.valid=20", "size.test=20", "batch_size_training=32"]


def result(accuracy: float, **changes: Any) -> dict[str, Any]:
    values = {
        "accuracy": accuracy,
        "wholly_right": accuracy,
        "updates": 500,
        "stage": 3,
        "num_thoughts": 6,
        "num_pauses": 0,
        "duration_s": 50.0,
    }
    return {**values, **changes}


def cell(row: str, seed: int, task: str = "modular_sum") -> Cell:
    return Cell(task, row, seed, (ROWS | objectives.ROWS)[row])


def test_a_row_is_a_method_with_its_seeds() -> None:
    done = {
        cell("coconut", 1): result(1.0),
        cell("coconut", 0): result(0.9, stage=2, num_thoughts=4),
        cell("pause", 0): result(0.125, num_thoughts=0, num_pauses=6, stage=0),
    }
    lines = render_table(done, list(METHODS)).splitlines()
    assert lines[0] == "sums of four digits modulo 10; chance 10.0%"
    assert lines[4] == "| `coconut` | 95.0 ± 7.1 | 90.0 | 100.0 | 2–3 | 4–6 thoughts | 50 |"
    assert lines[5] == "| `pause` | 12.5 | 12.5 | – | 0 | 6 pauses | 50 |"


def test_a_row_is_an_objective_with_the_updates_that_each_seed_needed() -> None:
    done = {
        cell("codi-coconut", 0): result(1.0),
        cell("codi-coconut", 1): result(0.5, updates=1500),
        cell("likelihood-pause_as_thought", 1): result(0.125, updates=1500),
    }
    lines = objectives.render_table(done, list(objectives.ROWS)).splitlines()
    assert lines[4] == "| `likelihood` | `pause_as_thought` | 12.5 | – | 12.5 | – | 50 |"
    assert lines[5] == "| `codi` | `coconut` | 75.0 ± 35.4 | 100.0 | 50.0 | 500, – | 50 |"


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("row", [*ROWS, *objectives.ROWS])
def test_every_cell_is_a_configuration(task: str, row: str) -> None:
    config = compose_config(cell(row, 2, task).overrides(()))
    objective, _, method = row.rpartition("-")
    assert (config.objective.kind, config.method.kind, config.run.seed) == (objective or "likelihood", method, 2)


@pytest.mark.slow
@pytest.mark.usefixtures("forked_runs")
@pytest.mark.parametrize("task", TASKS)
def test_each_method_trains_and_evaluates_and_a_second_start_keeps_what_is_there(
    tmp_path: Path, task: str, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--out", str(tmp_path), "--tasks", task, "--seeds", "0", "--set", *TINY]
    assert main(arguments) == 0
    results = {path.parts[-3]: json.loads(path.read_text()) for path in tmp_path.rglob("result.json")}
    assert sorted(results) == sorted(METHODS)
    assert {r["updates"] for r in results.values()} == {1}
    table = (tmp_path / "table.md").read_text()
    assert (tmp_path / "accuracy.png").stat().st_size > 10_000
    kept = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("result.json")}
    capsys.readouterr()
    changed = tmp_path / task / "cot" / "seed_0" / "result.json"
    changed.write_text(json.dumps({**results["cot"], "overrides": ["lr=1"]}))
    assert main(arguments) == 0
    assert capsys.readouterr().out.startswith("8 of 9 runs are already finished\n")
    assert {p for p, made in kept.items() if p.stat().st_mtime_ns != made} == {changed}
    assert [line.split("|")[:4] for line in (tmp_path / "table.md").read_text().splitlines()] == [
        line.split("|")[:4] for line in table.splitlines()
    ]


def test_a_run_that_fails_is_named_and_the_others_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    def run_cell(cell: Cell, out: Path, more: list[str]) -> dict[str, Any]:
        if cell.row == "cot":
            raise HarnessError("ended with exit code 1")
        return result(0.5)

    monkeypatch.setattr(cells, "run_cell", run_cell)
    assert main(["--out", str(tmp_path), "--tasks", "modular_sum", "--seeds", "0", "--methods", "cot", "no_cot"]) == 1
    written = capsys.readouterr()
    assert "error: modular_sum/cot/seed 0: ended with exit code 1" in written.err
    assert "| `no_cot` | 50.0 | 50.0 |" in written.out
