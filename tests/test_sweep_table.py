"""The table of a sweep's folder: means over seeds, tests against a baseline, failures, CSV and picture."""

import csv
import json
from dataclasses import replace
from pathlib import Path

import pytest
from making_sweeps import made
from scipy.stats import ttest_rel

from coconut_ds.errors import ConfigError
from coconut_ds.evaluation.statistics import paired_t
from coconut_ds.studies.jobs import record
from coconut_ds.studies.table import write_table


def test_a_row_has_mean_deviation_seeds_and_tests_against_the_baseline(tmp_path: Path) -> None:
    for seed, (coconut, control) in enumerate([(10, 2), (9, 3), (10, 1)]):
        made(tmp_path, "no_thoughts", seed, control, 0, num_thoughts=0, paper="21.6 ± 0.5")
        made(tmp_path, "coconut", seed, coconut, 1, stage=3 - seed % 2, updates=50 + seed)
    made(tmp_path, "pause", 1, 5, 2, num_thoughts=0, num_pauses=6)
    lines = write_table(tmp_path).markdown.splitlines()
    assert lines[0] == "sums modulo 10; chance 10.0%"
    p_seeds = ttest_rel([1.0, 0.9, 1.0], [0.2, 0.3, 0.1]).pvalue
    assert lines[4:7] == [
        "| `no_thoughts` | 20.0 ± 10.0 | 21.6 ± 0.5 | 20.0 | 30.0 | 10.0 |  |  |  |  | 50 | 3 | 0 | 50 |",
        "| `coconut` | 96.7 ± 5.8 |  | 100.0 | 90.0 | 100.0 | `no_thoughts` | +76.7 "
        f"| {p_seeds:.2g} | 0.031 | 50, 51, 52 | 2–3 | 6 thoughts | 50 |",
        "| `pause` | 50.0 |  | – | 50.0 | – | `no_thoughts` | +20.0 | – | 0.5 | 50 | 3 | 6 pauses | 50 |",
    ]
    other = write_table(tmp_path, "pause").markdown
    assert "| `no_thoughts` | 20.0 ± 10.0 | 21.6 ± 0.5 | 20.0 | 30.0 | 10.0 | `pause` | -20.0 | – | 0.5 |" in other
    assert "Nothing is compared with the baseline nothing: no such row" in write_table(tmp_path, "nothing").markdown
    with (tmp_path / "table.csv").open() as file:
        rows = {line["run"]: line for line in csv.DictReader(file)}
    assert float(rows["coconut"]["mean"]) == pytest.approx(0.9667, abs=1e-4)
    assert (rows["coconut"]["finished"], rows["pause"]["sd"], rows["pause"]["against"]) == ("3", "", "")
    with (tmp_path / "runs.csv").open() as file:
        runs = list(csv.DictReader(file))
    assert [(run["run"], run["seed"], run["accuracy"]) for run in runs][3:5] == [
        ("coconut", "0", "1.0"),
        ("coconut", "1", "0.9"),
    ]
    assert (tmp_path / "table.png").stat().st_size > 5_000


def test_failed_stopped_and_unfinished_runs_are_named_and_nothing_is_invented_for_them(tmp_path: Path) -> None:
    made(tmp_path, "coconut", 0, 10, more=("stop_at=0.95",))
    made(tmp_path, "coconut", 1, 5, more=("stop_at=0.95",))
    made(tmp_path, "pause", 0, None, 1, status="failed", more=("stop_at=0.95",))
    made(tmp_path, "pause", 1, None, 1, status="stopped", more=("stop_at=0.95",))
    table = write_table(tmp_path)
    assert "| `coconut` | 75.0 ± 35.4 | 100.0 | 50.0 | 50, 50 (not solved) | 3 | 6 thoughts | 50 |" in table.markdown
    assert "| `pause` | – | – | – | – | – | – | – |" in table.markdown
    assert "* sums/pause, seed 0: it broke\n  ```\n  one\n  two\n  ```\n" in table.markdown
    assert "Not finished; the same command continues: sums/pause, seed 1 (stopped)." in table.markdown
    assert table.has_failures


def test_runs_of_lines_that_differ_are_different_rows_compared_with_their_own_baseline(tmp_path: Path) -> None:
    for more in (("training.lr=1",), ("training.lr=2",)):
        for row, right in (("no_thoughts", 1), ("coconut", 2 * int(more[0][-1]))):
            job = made(tmp_path, row, 0, None, more=more)
            (job.folder() / "evaluation").mkdir(parents=True, exist_ok=True)
            folder = tmp_path / f"{row}{more[0]}"
            folder.mkdir()
            common = {
                "wholly_right": 0,
                "updates": 5,
                "stage": 0,
                "num_thoughts": 0,
                "num_pauses": 0,
                "duration_s": 1.0,
            }
            result = {"overrides": list(job.overrides), "accuracy": right / 10, **common}
            (folder / "result.json").write_text(json.dumps(result))
            record(job, folder, "finished")
    text = write_table(tmp_path).markdown
    assert "| `coconut,lr=1` | 20.0 | 20.0 | `no_thoughts,lr=1` | +10.0 | – | – |" in text
    assert "| `coconut,lr=2` | 40.0 | 40.0 | `no_thoughts,lr=2` | +30.0 | – | – |" in text


def test_the_latest_run_of_a_row_counts_and_numbers_order_the_rows(tmp_path: Path) -> None:
    made(tmp_path, "coconut", 0, 2, 4)
    pause = made(tmp_path, "pause", 0, 1, 5)
    # The row comes first in the command line of a later sweep, of another version of the run.
    changed = replace(pause, overrides=(*pause.overrides, "training.lr=2"), shown=replace(pause.shown, number=0))
    (tmp_path / "later").mkdir()
    old = json.loads((pause.folder() / "result.json").read_text())
    result = {**old, "overrides": list(changed.overrides), "accuracy": 0.9}
    (tmp_path / "later" / "result.json").write_text(json.dumps(result))
    record(changed, tmp_path / "later", "finished")
    rows = [line for line in write_table(tmp_path).markdown.splitlines() if line.startswith("| `")]
    assert [row.split(" | ")[:2] for row in rows] == [["| `pause`", "90.0"], ["| `coconut`", "20.0"]]


def test_a_folder_without_a_sweep_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="found no runs of coconut-sweep"):
        write_table(tmp_path)


def test_the_paired_t_test_is_scipys_and_defined_for_equal_differences() -> None:
    assert paired_t([0.5, 0.25, 0.75], [0.75, 0.5, 1.0]) == 0
    assert paired_t([0.5, 0.25], [0.5, 0.25]) == 1
    first, second = [0.1, 0.4, 0.35, 0.8], [0.3, 0.35, 0.5, 0.9]
    assert paired_t(first, second) == pytest.approx(ttest_rel(first, second).pvalue)
