"""The comparison of methods: results that exist are kept, and the table shows the results."""

import json
from pathlib import Path
from typing import Any

import pytest

from coconut_ds.methods import METHODS
from coconut_ds.settings.compose import compose_config
from coconut_ds.studies import methods as compare
from coconut_ds.studies.methods import TableCell, main, render_table

TINY = ["num_epochs=1", "size.train=64", "size.valid=20", "size.test=20", "batch_size_training=32"]


def result(accuracy: float, **changes: Any) -> dict[str, Any]:
    values = {"accuracy": accuracy, "stage": 3, "num_thoughts": 6, "num_pauses": 0, "duration_s": 50.0}
    return {**values, **changes}


def test_a_row_is_a_method_with_its_seeds() -> None:
    done = {
        TableCell("modular_sum", "coconut", 1): result(1.0),
        TableCell("modular_sum", "coconut", 0): result(0.9, stage=2, num_thoughts=4),
        TableCell("modular_sum", "pause", 0): result(0.125, num_thoughts=0, num_pauses=6, stage=0),
    }
    lines = render_table(done, list(METHODS)).splitlines()
    assert lines[0] == "sums of four digits modulo 10; chance 10.0%"
    assert lines[4] == "| `coconut` | 95.0 ± 7.1 | 90.0 | 100.0 | 2–3 | 4–6 thoughts | 50 |"
    assert lines[5] == "| `pause` | 12.5 | 12.5 | – | 0 | 6 pauses | 50 |"


@pytest.mark.parametrize("task", compare.TASKS)
@pytest.mark.parametrize("method", METHODS)
def test_every_cell_is_a_configuration(task: str, method: str) -> None:
    config = compose_config(TableCell(task, method, 2).overrides(()))
    assert (config.method.kind, config.run.seed) == (method, 2)


@pytest.mark.slow
@pytest.mark.usefixtures("forked_runs")
@pytest.mark.parametrize("task", compare.TASKS)
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
    def run_cell(cell: TableCell, out: Path, more: list[str]) -> dict[str, Any]:
        if cell.method == "cot":
            raise compare.HarnessError("ended with exit code 1")
        return result(0.5)

    monkeypatch.setattr(compare, "run_cell", run_cell)
    assert main(["--out", str(tmp_path), "--tasks", "modular_sum", "--seeds", "0", "--methods", "cot", "no_cot"]) == 1
    written = capsys.readouterr()
    assert "error: modular_sum/cot/seed 0: ended with exit code 1" in written.err
    assert "| `no_cot` | 50.0 | 50.0 |" in written.out
