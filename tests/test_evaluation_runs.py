"""Evaluations as processes: on any number of ranks, killed and started again, or refused with a reason."""

import json
import signal
import subprocess
from pathlib import Path

import pytest
import torch
from held_evaluation import HELD_AT
from launching import EVALUATE, environment, start
from making_evaluations import arguments_of, count_kept, make_place, predictions, run_evaluation
from waiting import wait_until

from coconut_ds.evaluate import main

HELD = Path(__file__).parent / "held_evaluation.py"
PROBLEMS = 499
"""A prime number: of the numbers of ranks used here, only 1 divides it."""
SWEEP = ["n_thoughts=0,2", "batch_size=16"]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A checkpoint, and problems of which it answers some correctly."""
    return make_place(tmp_path_factory.mktemp("evaluations"), PROBLEMS)


@pytest.fixture(scope="module")
def sweep(place):
    """A sweep that was not interrupted."""
    run(command_of(place, place / "sweep", *SWEEP))
    return place / "sweep"


def command_of(place: Path, out: Path, *more: str) -> list[str]:
    return [str(EVALUATE), *arguments_of(place, out), *more]


def run(command: list[str], ranks: int = 1) -> subprocess.CompletedProcess[str]:
    return run_evaluation(command[1:], ranks)


def scores(out: Path) -> dict:
    found = json.loads((out / "scores.json").read_text())
    del found["run"]
    return found


@pytest.mark.slow
def test_every_problem_counts_once_on_any_number_of_ranks(place, tmp_path):
    for ranks in (1, 2, 3):
        run(command_of(place, tmp_path / str(ranks), f"batch_size={32 * ranks}"), ranks)
    alone = predictions(tmp_path / "1")
    assert [line["index"] for line in alone] == list(range(PROBLEMS))
    assert predictions(tmp_path / "2") == alone
    assert predictions(tmp_path / "3") == alone
    assert scores(tmp_path / "1") == scores(tmp_path / "2") == scores(tmp_path / "3")
    assert scores(tmp_path / "1")["problems"] == PROBLEMS
    assert not list(tmp_path.rglob(".partial"))


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_an_evaluation_that_is_ended_keeps_what_it_has_and_carries_on(place, sweep, tmp_path, number):
    """The second launch may have another number of ranks. It predicts nothing twice, and its files equal those of an
    uninterrupted sweep."""
    out, release = tmp_path / "ended", tmp_path / "release"
    with (tmp_path / "stderr").open("w") as stderr:
        process = start([HELD, release, *arguments_of(place, out), *SWEEP], environment(), stderr=stderr)
    wait_until(lambda: count_kept(out) == HELD_AT or process.poll() is not None, limit_s=120)
    process.send_signal(number)
    release.touch()
    process.wait(60)
    said = (tmp_path / "stderr").read_text()
    if number == signal.SIGTERM:
        assert process.returncode == 75
        assert "predictions are kept in" in said
        assert "run the same command to continue" in said
    kept = count_kept(out)
    assert HELD_AT <= kept < HELD_AT + 32
    assert not (out / "sweep.json").exists()
    lines = next((out / ".partial").rglob("*.jsonl"))
    with lines.open("a") as file:
        file.write('{"arm": 1, "predi')
    done = run(command_of(place, out, *SWEEP), ranks=2 if number == signal.SIGKILL else 1)
    for name in ("0_thoughts", "2_thoughts"):
        assert predictions(out / name) == predictions(sweep / name)
        assert scores(out / name) == scores(sweep / name)
    assert not (out / ".partial").exists()
    again = json.loads((out / "sweep.json").read_text())[0]["run"]
    assert round(again["problems_per_s"] * again["seconds"]) == pytest.approx(2 * PROBLEMS - kept, rel=0.02)
    assert "accuracy" in done.stdout


@pytest.mark.slow
def test_two_evaluations_are_compared_and_wrong_requests_refused_in_one_line(place, sweep, tmp_path, capsys):
    """Refused requests leave nothing behind."""
    one, other = sweep / "0_thoughts", sweep / "2_thoughts"
    right = sum(n % 3 > 0 for n in range(PROBLEMS))
    assert scores(other)["accuracy"] == right / PROBLEMS > scores(one)["accuracy"]
    shown = run([str(EVALUATE), "--compare", str(one), str(other)]).stdout
    assert f"{PROBLEMS} problems" in shown
    assert str(right) in shown
    assert "McNemar" in shown
    torch.save({"transformer.wte.weight": torch.zeros(2, 2)}, tmp_path / "state")
    cases = {
        "n_thoughs=3": "did you mean n_thoughts",
        "n_thoughts=500": "context is 96",
        "n_thoughts=2,2": "expected different numbers",
        "top_k=3": "set temperature too",
        "min_thoughts=9": "expected at most 6, the largest number of thoughts",
        f"checkpoint={tmp_path / 'state'}": "set method=cot",
        "method=cot": "was trained with method=coconut",
        "method=none": "unknown method",
    }
    for wrong, words in cases.items():
        given = [part for part in arguments_of(place, tmp_path / "no") if part.split("=")[0] != wrong.split("=")[0]]
        assert main([*given, wrong]) == 2
        told = capsys.readouterr().err
        assert words in told
        assert told.count("error:") == 1
        assert not (tmp_path / "no").exists()
    assert main(["--compare", str(one)]) == 2
    assert "expected two" in capsys.readouterr().err
