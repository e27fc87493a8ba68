"""Sweeps: results that are kept, and runs that are killed or fail."""

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from making import contents

from coconut_ds.methods import METHODS
from coconut_ds.settings.sweep import SweepConfig
from coconut_ds.studies import harness, jobs, scoring
from coconut_ds.studies.harness import HarnessError, TrainedRun
from coconut_ds.studies.inputs import file_contents
from coconut_ds.studies.job import Job
from coconut_ds.studies.jobs import finish, finish_all
from coconut_ds.studies.study import read_study, study_job
from coconut_ds.studies.table import write_table
from coconut_ds.sweep import main

TINY = (
    *("training.num_epochs=1", "data.size.train=64", "data.size.valid=20", "data.size.test=20"),
    "training.batch_size_training=32",
)
LR = ("training.lr=1",)
SMALL_TASKS = read_study("small_tasks")


def small_jobs(task: str, rows: list[str], *more: str, seed: int = 0) -> list[Job]:
    study, sweep = SMALL_TASKS
    sweep = sweep.model_copy(update={"out": "out"})
    return [study_job(study, sweep, task, row, seed, more) for row in rows]


@pytest.mark.slow
@pytest.mark.usefixtures("forked_runs")
@pytest.mark.parametrize("task", SMALL_TASKS[0].tasks)
def test_each_method_trains_and_is_evaluated(
    tmp_path: Path, task: str, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the first task a second start, by Hydra, then keeps what is there."""
    monkeypatch.chdir(tmp_path)
    _, failed = finish_all(small_jobs(task, sorted(METHODS), *TINY), 1)
    out = tmp_path / "out"
    results = {path.parts[-3]: json.loads(path.read_text()) for path in out.rglob("result.json")}
    assert (sorted(results), failed) == (sorted(METHODS), {})
    assert {r["updates"] for r in results.values()} == {1}
    if task == "modular_sum":
        check_a_second_start(out)


def check_a_second_start(out: Path) -> None:
    """Removes a result, as after a kill between training and evaluation, and makes another run look as after a kill
    within training; the same command then makes these two results, and begins no run again."""
    table = write_table(out).markdown
    assert (out / "table.png").stat().st_size > 10_000
    kept = {path: path.stat().st_mtime_ns for path in out.rglob("result.json")}
    attempts = list(out.rglob("run_manifest.yaml"))
    untested, untrained = (out / "modular_sum" / row / "seed_0" for row in ("cot", "pause"))
    for folder in (untested, untrained):
        (folder / "result.json").unlink()
    (manifest,) = untrained.rglob("run_manifest.yaml")
    manifest.write_text(manifest.read_text().replace("status: completed", "status: running"))
    assert main(["study=small_tasks", "task=modular_sum", "row=cot,pause,icot", "run.seed=0", "out=out", *TINY]) == 0
    made = {path for path in out.rglob("result.json") if kept[path] != path.stat().st_mtime_ns}
    assert made == {folder / "result.json" for folder in (untested, untrained)}
    assert sorted(out.rglob("run_manifest.yaml")) == sorted(attempts), "no run has begun again"
    launches = {path.parts[-4]: len(yaml.safe_load(path.read_text())["launches"]) for path in attempts}
    assert {row for row, count in launches.items() if count == 2} == {"pause"}
    assert without_seconds((out / "table.md").read_text()) == without_seconds(table)


def without_seconds(table: str) -> list[str]:
    """The lines of a table without the last column."""
    return [line.rpartition("|")[0].rpartition("|")[0] for line in table.splitlines()]


@pytest.fixture
def trainings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[list[str]]:
    """The overrides of each training that a sweep starts; nothing is trained, and a run of ``cot`` with lr=9 fails."""
    started: list[list[str]] = []

    def launch_run(label: str, overrides: list[str], show: Any, *how: Any) -> TrainedRun:
        started.append(list(overrides))
        if "training.lr=9" in overrides:
            show("first\nTraceback\nwhat went wrong\n")
            raise HarnessError(f"{label}: the training process failed (exit code 1); see its output")
        line = {"eval/accuracy": 0.5, "eval/wholly_right": 0.5, "eval/stage": 1}
        line |= {"eval/num_thoughts": 2, "eval/num_pauses": 0, "global_step": 1}
        (tmp_path / "metrics.jsonl").write_text(json.dumps(line) + "\n")
        summary = {"updates": 1, "stage_switches": [], "last_checkpoint": f"c{len(started)}", "best_checkpoint": "best"}
        return TrainedRun(label, tmp_path, summary, 1.0)

    monkeypatch.setattr(jobs, "launch_run", launch_run)
    monkeypatch.setattr(jobs, "score", lambda checkpoint, overrides, folder, sweep: len(started) / 100)
    monkeypatch.chdir(tmp_path)
    return started


def test_a_sweep_keeps_runs_of_other_selections_and_the_table_has_all(trainings, tmp_path) -> None:
    chosen = [small_jobs("modular_sum", ["cot"], *more, seed=seed)[0] for more, seed in (((), 0), ((), 1), (LR, 0))]
    finish(chosen[0])
    first = contents(tmp_path / "out" / "modular_sum")
    for job in [*chosen, *chosen]:
        finish(job)
    assert [any("training.lr=1" in word for word in one) for one in trainings] == [False, False, True]
    assert first.items() <= contents(tmp_path / "out" / "modular_sum").items()
    table = write_table(tmp_path / "out").markdown
    assert "| `cot` | 1.5 ± 0.7 | 1.0 | 2.0 |" in table
    assert "| `cot,lr=1` | 3.0 | 3.0 | – |" in table


def test_a_run_is_evaluated_again_but_not_trained_again_for_another_evaluation(
    trainings, tmp_path, monkeypatch
) -> None:
    scored: list[tuple[str, list[str]]] = []
    monkeypatch.setattr(jobs, "score", lambda checkpoint, words, *rest: scored.append((checkpoint, words)) or 0.5)
    (job,) = small_jobs("modular_sum", ["cot"])
    finish(job)
    summary = {"last_checkpoint": "c", "best_checkpoint": "b", "updates": 1, "stage_switches": []}
    monkeypatch.setattr(jobs, "finished_run", lambda label, folder: TrainedRun(label, tmp_path, summary, 1.0))
    for changes in ({"test": ("batch_size=7",)}, {"checkpoint": "best"}, {"test": ("data=modular_sum", "modulus=7")}):
        finish(replace(job, sweep=job.sweep.model_copy(update=changes)))
    assert len(trainings) == 1
    assert [checkpoint for checkpoint, _ in scored] == ["c1", "b", "c"], "the batch size changes nothing"
    assert scored[-1][1] == ["seed=0", "data=modular_sum", "modulus=7"]


def test_a_run_of_an_earlier_version_is_kept_and_used(trainings, tmp_path) -> None:
    (job,) = small_jobs("modular_sum", ["cot"])
    job.folder().mkdir(parents=True)
    result = {"accuracy": 0.25, "stage": 0, "num_thoughts": 0, "num_pauses": 0, "duration_s": 1.0, "updates": 5}
    (job.folder() / "result.json").write_text(json.dumps({"overrides": list(job.overrides), **result}))
    kept = contents(job.folder())
    assert finish(job)["accuracy"] == 0.25
    assert trainings == []
    assert "| `cot` | 25.0 | 25.0 |" in write_table(tmp_path / "out").markdown
    finish(*small_jobs("modular_sum", ["cot"], *LR))
    assert len(trainings) == 1
    assert contents(job.folder()) == kept


def test_a_run_that_fails_is_named_with_its_last_lines_and_the_others_go_on(trainings, tmp_path, capfd) -> None:
    line = ["study=small_tasks", "task=modular_sum", "row=cot,no_cot", "lr=9,1", "run.seed=0", "out=out"]
    assert main(line) == 1
    written = capfd.readouterr()
    assert "* modular_sum/cot,lr=9, seed 0: modular_sum/cot,lr=9/seed 0: the training process failed" in written.out
    assert "  Traceback\n  what went wrong\n" in written.out
    assert "| `no_cot,lr=1` |" in written.out
    assert len(trainings) == 4
    assert main(["--table", "out", "baseline=lr=9"]) == 1
    assert main(["--table"]) == 2


def test_a_row_starts_from_the_checkpoint_of_another_which_is_trained_once(trainings, tmp_path) -> None:
    folder = tmp_path / "study"
    folder.mkdir()
    rows = {"first": {"overrides": ["method=cot"]}, "second": {"after": "first", "overrides": ["method=coconut"]}}
    text = {
        "common": ["data=modular_sum", "model=gpt2_scratch_tiny"],
        "tasks": {"sums": {}},
        "rows": rows,
        "seeds": [4],
    }
    (folder / "mine.yaml").write_text("# @package _global_\n" + yaml.safe_dump({"study": text}))
    assert main(["study=mine", "row=second", "out=out", "--config-dir", str(tmp_path)]) == 0
    assert [("load_model_path=best" in " ".join(one)) for one in trainings] == [False, True]
    assert all(f"--config-dir={tmp_path}" in one for one in trainings)
    table = (tmp_path / "out" / "table.md").read_text().splitlines()
    assert [row.split("|")[1].strip() for row in table if row.startswith("| `")] == ["`first`", "`second`"]


@pytest.mark.parametrize(
    ("start", "first"), [("plain", ["coconut_ds/train.py"]), ("torchrun", ["-m", "torch.distributed.run"])]
)
def test_a_run_is_started_as_asked(monkeypatch: pytest.MonkeyPatch, start: str, first: list[str]) -> None:
    asked: list[list[str]] = []
    monkeypatch.setattr(harness, "run_program", lambda command, show, threads: asked.append(command) or 75)
    with pytest.raises(harness.StoppedError, match="it has saved"):
        harness.launch_run("one", ["lr=1"], print, start, 1, None)
    assert " ".join(first) in " ".join(asked[0][1:])
    assert asked[0][-1] == "lr=1"


PROGRAM = """
import os, signal, time

def save(*given):
    # Not print, which may be what the signal interrupts.
    os.write(1, b"saving\\n")
    time.sleep(0.4)
    os.write(1, b"saved\\n")
    os._exit(75)

signal.signal(signal.SIGTERM, save)
print("started", flush=True)
time.sleep(60)
"""
"""A run that needs more time to save than Popen waits for after Ctrl-C."""


def test_an_interrupted_program_saves_before_the_sweep_ends() -> None:
    shown: list[str] = []

    def show(line: str) -> None:
        shown.append(line)
        if line == "started\n":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        harness.run_program([sys.executable, "-c", PROGRAM], show, None)
    assert shown == ["started\n", "saving\n", "saved\n"]


@pytest.mark.parametrize(
    ("place", "error", "status", "text"),
    [
        ("launch_run", KeyboardInterrupt(), "stopped", "KeyboardInterrupt"),
        ("launch_run", harness.StoppedError("it has saved"), "stopped", "it has saved"),
        ("score", MemoryError("12 GiB"), "failed", "MemoryError: 12 GiB"),
        ("score", HarnessError("see the log"), "failed", "see the log"),
    ],
)
def test_the_record_of_a_run_says_how_it_ended(
    trainings, tmp_path, monkeypatch, place: str, error: BaseException, status: str, text: str
) -> None:
    def end(*given: Any) -> Any:
        raise error

    monkeypatch.setattr(jobs, place, end)
    with pytest.raises(type(error)):
        finish(*small_jobs("modular_sum", ["cot"]))
    (record,) = (tmp_path / "out" / "jobs").iterdir()
    found = json.loads(record.read_text())
    assert (found["status"], found["error"]) == (status, text)


@pytest.mark.parametrize(("code", "error"), [(75, harness.StoppedError), (1, HarnessError)])
@pytest.mark.parametrize("start", ["plain", "torchrun"])
def test_an_evaluation_is_a_process_that_can_be_stopped(tmp_path, monkeypatch, start: Any, code: int, error) -> None:
    asked: list[list[str]] = []
    monkeypatch.setattr(scoring, "run_program", lambda command, show, threads: asked.append(command) or code)
    with pytest.raises(HarnessError) as raised:
        scoring.score("c", ["seed=0"], tmp_path, SweepConfig(start=start))
    assert type(raised.value) is error
    assert "coconut_ds/evaluate.py" in " ".join(asked[0])


def test_the_model_card_of_a_checkpoint_is_no_part_of_a_runs_identity(tmp_path: Path) -> None:
    """Evaluations write their scores there."""
    overrides = [*("data=modular_sum", "model=gpt2_scratch_tiny"), f"run.load_model_path={tmp_path}"]
    found = []
    for name in ("model.safetensors", "README.md", "config.json"):
        (tmp_path / name).write_text(name)
        found.append(file_contents(overrides)["run.load_model_path"])
    assert found[0] == found[1] != found[2]


def test_a_row_that_failed_is_not_trained_again_for_each_row_that_starts_from_it(trainings, tmp_path, capfd) -> None:
    folder = tmp_path / "study"
    folder.mkdir()
    rows: dict[str, Any] = {"first": {"overrides": ["method=cot", "training.lr=9"]}}
    rows |= {name: {"after": "first", "overrides": ["training.lr=1"]} for name in ("second", "third")}
    text = {"common": ["data=modular_sum", "model=gpt2_scratch_tiny"], "tasks": {"sums": {}}, "rows": rows}
    (folder / "mine.yaml").write_text("# @package _global_\n" + yaml.safe_dump({"study": {**text, "seeds": [4]}}))
    line = ["study=mine", "out=out", "--config-dir", str(tmp_path)]
    for launches in (1, 2):
        assert main(line) == 1
        assert len(trainings) == launches, "the next launch tries it again"
    shown = capfd.readouterr().out
    log = Path("out", "sums", "first", "seed_4", "log.txt")
    assert "sums/third/seed 4: the run that it starts from has failed (sums/first/seed 4: the training" in shown
    assert f"see {log}\n  ```\n  first\n  Traceback\n  what went wrong\n" in shown
