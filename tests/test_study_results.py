"""Studies and the demo keep their results: another selection or seed gets a folder of its own."""

import json

import pytest
from making import contents

from coconut_ds.studies import demo, grpo, jobs
from coconut_ds.studies.harness import TrainedRun


@pytest.fixture
def trainings(monkeypatch, tmp_path) -> list[list[str]]:
    """The overrides of each training that a study starts; nothing is trained."""
    started: list[list[str]] = []
    summary = {"updates": 1, "stage_switches": [], "last_checkpoint": "x"}

    def launch_run(label, overrides, show):
        started.append(list(overrides))
        line = {"eval/accuracy": 0.5, "eval/wholly_right": 0.5, "eval/stage": 1}
        line |= {"eval/num_thoughts": 2, "eval/num_pauses": 0, "global_step": 1}
        (tmp_path / "metrics.jsonl").write_text(json.dumps(line) + "\n")
        return TrainedRun(label, tmp_path, summary, 1.0)

    monkeypatch.setattr(demo, "launch_run", launch_run)
    monkeypatch.setattr(demo, "score_on_test", lambda run, data, out: len(started) / 100)
    for name in ("show_thoughts", "draw_curves"):
        monkeypatch.setattr(demo, name, lambda *given: None)
    return started


def test_the_demo_keeps_results_of_another_seed_and_finds_its_own(trainings, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert demo.main([]) == 0
    kept = contents(tmp_path / "outputs")
    assert demo.main(["--seed", "1"]) == 0
    assert kept.items() <= contents(tmp_path / "outputs").items()
    assert len(list(tmp_path.glob("outputs/demo/seed_1-*/summary.json"))) == 1
    count = len(trainings)
    capsys.readouterr()
    assert demo.main([]) == 0
    assert capsys.readouterr().out.startswith("finished before; these are the stored results")
    assert len(trainings) == count
    assert demo.main(["--out", "here"]) == 0
    here = contents(tmp_path / "here")
    assert demo.main(["--out", "here", "--seed", "1"]) == 2
    assert "seed (0 there, 1 now)" in capsys.readouterr().err
    assert contents(tmp_path / "here") == here
    assert demo.main(["--out", "here", "--seed", "1", "--overwrite"]) == 0
    assert json.loads((tmp_path / "here/summary.json").read_text())["seed"] == 1


def test_the_study_of_grpo_keeps_its_runs_and_compares_them_with_their_start(trainings, tmp_path, monkeypatch, capsys):
    def score_on_test(run, data, out):
        started = run.label.endswith("half")
        out.mkdir(parents=True, exist_ok=True)
        lines = [
            {"index": index, "question": "1 2", "answer": "3", "correct": index < (6 if started else 9)}
            for index in range(10)
        ]
        (out / "predictions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        return 0.6 if started else 0.9

    def launch_run(label, overrides, show, start, ranks, threads):
        trainings.append(list(overrides))
        rewards = [{"train/reward": 0.1 * number} for number in range(8)]
        (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in rewards))
        return TrainedRun(label, tmp_path, {"updates": 8, "last_checkpoint": "x"}, 1.0)

    monkeypatch.setattr(grpo, "score_on_test", score_on_test)
    monkeypatch.setattr(jobs, "launch_run", launch_run)
    line = ["--out", str(tmp_path / "out"), "--seeds", "0", "1", "--exploration", "none", "svp", "--lanes", "1"]
    assert grpo.main(line) == 0
    assert len(trainings) == 6, "two starts, each trained with two kinds of exploration"
    assert all("load_model_path=x" in one for one in trainings[2:])
    table = (tmp_path / "out" / "table.md").read_text()
    assert "| start | 60.0 | 60.0 | 60.0 | | | 1 |" in table
    assert "| `svp` | 90.0 | 90.0 | 90.0 | 0.2 | 0.20 → 0.50 | 1 |" in table
    assert "* seed 1, `none`: 3 problems gained, 0 lost, p = 0.2" in table
    assert grpo.main(line) == 0
    assert len(trainings) == 6, "finished runs are kept"
    (tmp_path / "out" / "seed_1" / "svp" / "result.json").write_text("{")
    assert grpo.main(line) == 0
    assert len(trainings) == 7, "a damaged result is made again"
