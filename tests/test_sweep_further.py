"""Sweeps: further tests and probes of runs that have been trained, their tables, and learning curves."""

import csv
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from making_sweeps import made

from coconut_ds.errors import ConfigError
from coconut_ds.settings.schema import validated
from coconut_ds.settings.sweep import StudyConfig, SweepConfig
from coconut_ds.studies import further, further_tests, jobs, probes
from coconut_ds.studies.curves import draw_curves
from coconut_ds.studies.harness import HarnessError, StoppedError, TrainedRun
from coconut_ds.studies.job import FurtherTest, Job, Probe
from coconut_ds.studies.jobs import finish, record
from coconut_ds.studies.records import read_rows
from coconut_ds.studies.scoring import own_data
from coconut_ds.studies.study import study_job
from coconut_ds.studies.table import write_table
from coconut_ds.sweep import main

STUDY: dict[str, Any] = {
    "common": ["model=gpt2_scratch_tiny"],
    "tasks": {"sums": {"overrides": ["data=modular_sum", "data.num_terms=3"]}},
    "rows": {"first": {"overrides": ["method=coconut"]}, "second": {"after": "first", "overrides": ["training.lr=1"]}},
    "seeds": [0, 1],
    "tests": {
        "other": {"overrides": ["data=permutation_product", "batch_size=7"]},
        "longer": {"title": "longer sums", "overrides": ["data.num_terms=5"], "rows": ["first"]},
    },
    "probes": {"inside": {"mode": "effects", "overrides": ["num_problems=3"], "rows": ["first"], "seeds": [0]}},
}
SWEEP = SweepConfig(out="out", test=("data.modulus=7", "bf16=false"))


def job_of(study: dict[str, Any] = STUDY, row: str = "first", **changes: Any) -> Job:
    return study_job(StudyConfig(**study), SWEEP.model_copy(update=changes), "sums", row, 0)


@pytest.fixture
def work(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[list[str]]:
    """What a sweep starts: the kind of each process, then its words. No process is started; an evaluation has 3 of 4
    problems right."""
    started: list[list[str]] = []

    def launch_run(label: str, overrides: list[str], *how: Any) -> TrainedRun:
        started.append(["train", *overrides])
        line = {"eval/accuracy": 0.5, "eval/wholly_right": 0.5, "eval/stage": 1}
        line |= {"eval/num_thoughts": 2, "eval/num_pauses": 0, "global_step": 1}
        (tmp_path / "metrics.jsonl").write_text(json.dumps(line) + "\n")
        summary = {"updates": 1, "stage_switches": [], "last_checkpoint": "last", "best_checkpoint": "best"}
        monkeypatch.setattr(jobs, "finished_run", lambda label, folder: TrainedRun(label, tmp_path, summary, 1.0))
        return TrainedRun(label, tmp_path, summary, 1.0)

    def run_evaluation(checkpoint: str, words: list[str], folder: Path, sweep: SweepConfig, name: str) -> None:
        started.append([name, f"checkpoint={checkpoint}", *words])
        (folder / name).mkdir(exist_ok=True)
        scores = {"accuracy": 0.75, "num_thoughts": 2, "num_pauses": 0}
        (folder / name / "scores.json").write_text(json.dumps(scores))

    def run_program(command: list[str], *how: Any) -> int:
        started.append(["probe", *command[2:]])
        return 0

    monkeypatch.setattr(jobs, "launch_run", launch_run)
    monkeypatch.setattr(jobs, "score", lambda *given: started.append(["evaluation"]) or 0.5)
    monkeypatch.setattr(further_tests, "run_evaluation", run_evaluation)
    monkeypatch.setattr(probes, "run_program", run_program)
    monkeypatch.chdir(tmp_path)
    return started


def kinds(work: list[list[str]]) -> list[str]:
    """The kinds of what was started since the last call."""
    found = [one[0] for one in work]
    work.clear()
    return found


def test_tests_and_probes_use_the_runs_own_problems_unless_they_choose_data(work) -> None:
    result = finish(job_of())
    _, _, other, longer, probe = work
    assert other == [
        *("evaluation_other", "checkpoint=best", "seed=0", "bf16=false", "data=permutation_product", "batch_size=7")
    ]
    own = ["seed=0", "data=modular_sum", "data.num_terms=3"]
    assert longer[2:] == [*own, "data.modulus=7", "bf16=false", "data.num_terms=5"]
    out = "out=out/sums/first/seed_0/probe_inside"
    assert probe == ["probe", "effects", "checkpoint=best", out, "overwrite=true", *own, "num_problems=3"]
    assert {name: one["accuracy"] for name, one in result["tests"].items()} == {"other": 0.75, "longer": 0.75}
    assert result["probes"]["inside"]["folder"] == "probe_inside"


def test_a_new_or_changed_test_is_the_only_work_of_a_run_that_is_finished(work) -> None:
    bare = {**STUDY, "tests": {}, "probes": {}}
    finish(job_of(bare))
    assert kinds(work) == ["train", "evaluation"]
    finish(job_of())
    assert kinds(work) == ["evaluation_other", "evaluation_longer", "probe"]
    finish(job_of())
    assert kinds(work) == []
    tests = {**STUDY["tests"], "other": {"overrides": ["data=permutation_product", "batch_size=9"]}}
    finish(job_of({**STUDY, "tests": tests}))
    assert kinds(work) == [], "the batch size changes nothing"
    tests["longer"] = {**tests["longer"], "overrides": ["data.num_terms=6"]}
    finish(job_of({**STUDY, "tests": tests}))
    assert kinds(work) == ["evaluation_longer"]
    finish(job_of({**STUDY, "tests": tests}, test=("bf16=true",)))
    assert kinds(work) == ["evaluation", "evaluation_other", "evaluation_longer"], "the probe does not use sweep.test"


@pytest.mark.parametrize("error", [KeyboardInterrupt(), StoppedError("stopped")])
def test_a_sweep_that_is_stopped_between_two_tests_continues_with_the_second(work, monkeypatch, error) -> None:
    whole = further_tests.run_evaluation

    def stop(checkpoint: str, words: list[str], folder: Path, sweep: SweepConfig, name: str) -> None:
        if name == "evaluation_longer":
            raise error
        whole(checkpoint, words, folder, sweep, name)

    monkeypatch.setattr(further_tests, "run_evaluation", stop)
    with pytest.raises(type(error)):
        finish(job_of())
    assert kinds(work) == ["train", "evaluation", "evaluation_other"]
    table = write_table(Path("out")).markdown
    assert "| `first` | 50.0 | 50.0 |" in table
    assert "Not finished; the same command continues: sums/first, seed 0 (stopped)." in table
    monkeypatch.setattr(further_tests, "run_evaluation", whole)
    finish(job_of())
    assert kinds(work) == ["evaluation_longer", "probe"]
    assert "Not finished" not in write_table(Path("out")).markdown


def test_a_test_that_fails_is_named_and_stops_neither_the_others_nor_a_run_that_starts_from_this_one(
    work, monkeypatch
) -> None:
    whole = further_tests.run_evaluation

    def fail(checkpoint: str, words: list[str], folder: Path, sweep: SweepConfig, name: str) -> None:
        if name == "evaluation_other":
            raise HarnessError("it broke")
        whole(checkpoint, words, folder, sweep, name)

    monkeypatch.setattr(further_tests, "run_evaluation", fail)
    with pytest.raises(HarnessError, match=r"^tests\.other: it broke$"):
        finish(job_of(launch="one"))
    assert kinds(work) == ["train", "evaluation", "evaluation_longer", "probe"]
    second = replace(job_of(row="second", launch="one"), tests=())
    monkeypatch.setattr(jobs, "finished_run", lambda *given: None)
    finish(second)
    assert kinds(work) == ["train", "evaluation"], "its tests are not tried again for the row that starts from it"
    table = write_table(Path("out"))
    assert "* sums/first, seed 0: tests.other: it broke" in table.markdown
    assert table.has_failures


def with_tests(job: Job, right: dict[str, int | dict[str, float]]) -> None:
    """The files of a run's further tests: the numbers of problems of 10 that are right, or accuracies by thoughts."""
    titles = {"other": "on other problems"}
    tests = tuple(FurtherTest(name, titles.get(name, name), (f"seed={name}",)) for name in right)
    job = replace(job, tests=tests, probes=(Probe("inside", "graph", ()),))
    path = job.folder() / "result.json"
    result = json.loads(path.read_text())
    asked = further.asked_further(job)
    made_with = {name: {"made_with": one["made_with"]} for name, one in asked["tests"].items()}
    for name, number in right.items():
        folder = job.folder() / f"evaluation_{name}"
        if isinstance(number, dict):
            made_with[name]["accuracy_by_thoughts"] = number
            continue
        folder.mkdir()
        lines = [{"index": i, "question": f"{i}", "answer": "1", "correct": i < number} for i in range(10)]
        (folder / "predictions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        made_with[name]["accuracy"] = number / 10
    result["tests"] = made_with
    result["probes"] = {"inside": {"folder": "probe_inside", **asked["probes"]["inside"]}}
    path.write_text(json.dumps(result))
    record(job, job.folder(), "finished")


def test_each_test_has_a_table_below_the_main_one_with_the_same_comparison(tmp_path: Path) -> None:
    """The main accuracies of a second sweep are the first one's accuracies on the test, so both tables must agree."""
    one, other = tmp_path / "one", tmp_path / "other"
    for seed, (coconut, control) in enumerate([(10, 2), (9, 3), (10, 1)]):
        for number, (row, right) in enumerate([("no_thoughts", control), ("coconut", coconut)]):
            made(other, row, seed, right, number)
            by_thoughts: dict[str, Any] = {"thoughts": {"0": 0.1 * seed, "2": 0.5}} if row == "coconut" else {}
            with_tests(made(one, row, seed, 5, number), {"other": right, **by_thoughts})
    table = write_table(one)
    main_part, of_test, by_thoughts_part = table.markdown.split("Test `")
    assert main_part.count("50.0 ± 0.0") == 2
    assert of_test.startswith("other`: on other problems\n\n| run | accuracy, % | seed 0 | seed 1 | seed 2 | against |")
    expected = [line.split(" | ")[:9] for line in write_table(other).markdown.splitlines() if line.startswith("| `")]
    found = [line.removesuffix(" |").split(" | ")[:9] for line in of_test.splitlines() if line.startswith("| `")]
    assert found == expected
    assert "| run | 0 | 2 |\n|---|---|---|\n| `coconut` | 10.0 ± 10.0 | 50.0 ± 0.0 |\n" in by_thoughts_part
    link = "* `coconut`, seed 2: [inside](sums/coconut/seed_2/probe_inside)"
    assert link in by_thoughts_part
    with (one / "tests.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == 6 + 3 * 2
    last = [lines[-3][key] for key in ("task", "run", "seed", "test", "thoughts", "accuracy")]
    assert last == ["sums", "coconut", "2", "other", "", "1.0"]
    assert [(line["thoughts"], float(line["accuracy"])) for line in lines[-2:]] == [("0", 0.2), ("2", 0.5)]
    assert one / "tests.csv" in table.files


def test_a_test_that_was_made_with_other_overrides_is_shown_as_missing(tmp_path: Path) -> None:
    job = made(tmp_path, "coconut", 0, 5)
    with_tests(job, {"other": 9})
    changed = replace(job, tests=(FurtherTest("other", "other", ("seed=5",)),))
    record(changed, job.folder(), "started")
    markdown = write_table(tmp_path).markdown
    assert "Test `other`\n\n| run | accuracy, % | seed 0 |\n|---|---|---|\n| `coconut` | – | – |\n" in markdown
    assert "sums/coconut, seed 0 (started)" in markdown


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tests": {"one": {"rows": ["firs"]}}}, r"tests\.one\.rows: found firs, expected some of first, second"),
        ({"probes": {"one": {"mode": "graph", "tasks": ["a"]}}}, r"probes\.one\.tasks: found a, expected some of sums"),
        ({"tests": {"a/b": {}}}, r"tests: found the name 'a/b', expected letters, digits, _ and - alone"),
        ({"probes": {"one": {"mode": "grap"}}}, r"probes\.one\.mode: found 'grap', Input should be 'think'"),
        ({"tests": {"one": {"overrides": ["out=x"]}}}, r"tests\.one: .*found out=x, expected other keys"),
        ({"tests": {"one": {"task": ["sums"]}}}, r"tests\.one\.task: .*Extra inputs are not permitted"),
    ],
)
def test_a_wrong_test_or_probe_of_a_study_is_refused_with_its_place(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        validated(StudyConfig, {**STUDY, **changes})


def test_a_wrong_override_of_a_test_is_refused_before_anything_is_trained(work, tmp_path, capsys) -> None:
    (tmp_path / "study").mkdir()
    tests = {"one": {"overrides": ["data.num_term=5"]}}
    text = yaml.safe_dump({"study": {**STUDY, "tests": tests}})
    (tmp_path / "study" / "mine.yaml").write_text(f"# @package _global_\n{text}")
    assert main(["study=mine", "out=out", "--config-dir", str(tmp_path)]) == 2
    written = capsys.readouterr().err
    assert "error: study.tests.one.overrides, task sums: data.num_term=5: no group has this key; did you" in written
    assert not work


def test_a_curve_is_dotted_where_a_run_has_other_problems_than_its_own(tmp_path: Path, monkeypatch) -> None:
    """One run with a schedule, which was moved since; one without; and one whose folder is gone."""
    for number, row in enumerate(("plain", "scheduled", "gone")):
        job = made(tmp_path, row, 0, 5, number, run=f"/elsewhere/{row}/seed_0/run/attempt")
        if row == "gone":
            continue
        run = job.folder() / "run" / "attempt"
        run.mkdir(parents=True)
        schedule = [{"num_terms": 2}] if row == "scheduled" else []
        (run / "config.yaml").write_text(yaml.safe_dump({"data": {"schedule": schedule}}))
        lines = [{"global_step": 8 * i, "eval/accuracy": 1 - math.exp(-i / 3)} for i in range(1, 7)]
        phases = [{"eval/data_phase": int(i > 1)} if schedule else {} for i in range(6)]
        both = [{**line, **phase} for line, phase in zip(lines, phases, strict=True)]
        (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in both))
    drawn: list[tuple[str, list[int]]] = []
    from matplotlib.axes import Axes

    whole = Axes.plot

    def plot(axes: Axes, x: list[int], y: list[float], **look: Any) -> Any:
        drawn.append((look["linestyle"], list(x)))
        return whole(axes, x, y, **look)

    monkeypatch.setattr(Axes, "plot", plot)
    assert draw_curves(read_rows(tmp_path), tmp_path / "curves.png")
    assert drawn == [("-", [8, 16, 24, 32, 40, 48]), (":", [8, 16]), ("-", [24, 32, 40, 48])]
    assert (tmp_path / "curves.png").stat().st_size > 5_000


@pytest.mark.parametrize(
    ("words", "data"),
    [
        (["run=graph_search", "data.num_hops=[5,6]"], ["data=prosqa_arrows", "data.num_hops=[5,6]"]),
        (["run=quick", "size.train=9"], ["data=prosqa_quick", "size.train=9"]),
        (["run=quick", "data=modular_sum"], ["data=modular_sum"]),
        (["method=cot"], ["data=prosqa_file"]),
    ],
)
def test_the_problems_of_a_run_are_known_also_if_another_option_or_the_default_chooses_them(words, data):
    assert own_data(words, SweepConfig()) == data
