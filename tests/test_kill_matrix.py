"""Runs that are killed and resumed end with the same bits, and the comparison finds a single bit that differs."""

import copy
import json
import shutil
from pathlib import Path

import numpy
import pytest
import torch
from equal_runs import differences, unequal
from kill_matrix import POINTS
from launching import environment, run

from coconut_ds.distributed.state_file import SUFFIX, read_state, write_state
from coconut_ds.training.engine_state import random_file

MATRIX = Path(__file__).parent / "kill_matrix.py"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "kills"),
    [
        (["--kills", str(len(POINTS)), "--seed", "0"], len(POINTS)),
        (["--kills", "2", "--ranks", "2", "--signal", "TERM"], 2),
    ],
    ids=["killed at each point", "two ranks asked to stop"],
)
def test_runs_that_are_ended_and_started_again_become_the_run_left_alone(options, kills):
    done = run([MATRIX, *options], environment())
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    result = json.loads(done.stdout.splitlines()[-1])
    assert (result["kills"], result["mismatches"], result["points_left"]) == (kills, 0, [])
    # A run may complete before its ranks notice that they should stop.
    assert result["resumes"] >= (1 if "TERM" in options else kills)
    assert result["lost_updates"] == 0 or "TERM" not in options


MOMENTS = f"engine/state/optim{SUFFIX}"
RECORD = [
    {"epoch": 1, "global_step": 1, "train/loss": 3.25, "perf/update_s": 0.1, "time": 1.0},
    {"epoch": 1, "global_step": 2, "train/loss": 3.125, "perf/update_s": 0.2, "time": 2.0},
]
RESUME_STATE = {"position": {"epoch": 1, "loss_sum": 6.375}, "scores": {"best_accuracy": 0.5}, "world_size": 1}


@pytest.fixture
def attempts(tmp_path):
    """Two attempts that are equal except for times."""
    for name, later in (("left", 0.0), ("right", 5.0)):
        folder = tmp_path / name / "checkpoint_1_2"
        (folder / "engine" / "state").mkdir(parents=True)
        (tmp_path / name / "checkpoint_1").mkdir()
        (folder / "model.safetensors").write_bytes(b"weights")
        (folder / "manifest.json").write_text(json.dumps({"files": later}))
        (folder / "engine" / "resume_state.json").write_text(json.dumps({**RESUME_STATE, "metrics_bytes": later}))
        write_state({"exp_avg": torch.ones(3), "step": 2}, folder / MOMENTS)
        write_state({"python": (3, (1, 2)), "numpy": numpy.arange(3)}, random_file(folder / "engine", 0))
        lines = [{**line, "time": line["time"] + later, "perf/update_s": later} for line in RECORD]
        (tmp_path / name / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return tmp_path / "left", tmp_path / "right"


def test_equal_attempts_are_equal(attempts):
    assert differences(*attempts) == []


def flipped_weights(attempt: Path) -> None:
    (attempt / "checkpoint_1_2" / "model.safetensors").write_bytes(b"weighus")


def flipped_moment(attempt: Path) -> None:
    path = attempt / "checkpoint_1_2" / MOMENTS
    state = read_state(path)
    state["exp_avg"].view(torch.int32)[1] ^= 1
    write_state(state, path)


def other_random_state(attempt: Path) -> None:
    path = random_file(attempt / "checkpoint_1_2" / "engine", 0)
    state = read_state(path)
    state["numpy"][0] += 1
    write_state(state, path)


def other_resume_state(attempt: Path, key: str) -> None:
    path = attempt / "checkpoint_1_2" / "engine" / "resume_state.json"
    values = json.loads(path.read_text())
    values[key][next(reversed(values[key]))] += 2**-40
    path.write_text(json.dumps(values))


def other_loss(attempt: Path) -> None:
    path = attempt / "metrics.jsonl"
    path.write_text(path.read_text().replace("3.125", "3.1250000000000004"))


def repeated_line(attempt: Path) -> None:
    path = attempt / "metrics.jsonl"
    path.write_text(path.read_text() + path.read_text().splitlines(keepends=True)[-1])


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (flipped_weights, "model.safetensors"),
        (flipped_moment, MOMENTS),
        (other_random_state, "random_0"),
        (lambda attempt: other_resume_state(attempt, "position"), "resume_state.json: position"),
        (lambda attempt: other_resume_state(attempt, "scores"), "resume_state.json: scores"),
        (other_loss, "metrics.jsonl: 2 and 2 lines, the first to differ is 1"),
        (repeated_line, "metrics.jsonl: 2 and 3 lines, the first to differ is 2"),
        (lambda attempt: shutil.rmtree(attempt / "checkpoint_1"), "checkpoints "),
        (lambda attempt: (attempt / "checkpoint_1_2" / "extra").touch(), "extra"),
    ],
)
def test_one_bit_is_found_whichever_attempt_has_it(attempts, spoil, words):
    left, right = attempts
    spoil(right)
    for found in (differences(left, right), differences(right, left)):
        assert len(found) == 1
    assert words in differences(left, right)[0]


def test_a_file_that_is_missing_is_found(attempts):
    left, right = attempts
    random_file(right / "checkpoint_1_2" / "engine", 0).unlink()
    assert differences(left, right)
    assert differences(right, left)


class Holder:
    """An object like those that DeepSpeed pickles."""

    def __init__(self, value: object) -> None:
        self.value = value


VALUE = {
    "tensor": torch.tensor([0.0, 1.0]),
    "list": [1, 2.0, "a", b"b", None, True],
    "tuple": (1, (2, 3)),
    "array": numpy.array([1, 2]),
    "object": Holder([1, {"deep": 2}]),
    "nothing": torch.zeros(0),
    "set": {1, 2},
    "type": torch.float32,
}


@pytest.mark.parametrize(
    ("change", "where"),
    [
        (lambda v: v["tensor"].view(torch.int32).__setitem__(1, 0x3F800001), ".tensor"),
        (lambda v: v["tensor"].__setitem__(0, -0.0), ".tensor"),
        (lambda v: v.update(tensor=v["tensor"].double()), ".tensor"),
        (lambda v: v.update(tensor=v["tensor"][:1]), ".tensor"),
        (lambda v: v.update(tensor=[0.0, 1.0]), ".tensor"),
        (lambda v: v["list"].__setitem__(1, 2.0000000000000004), ".list[1]"),
        (lambda v: v["list"].append(0), ".list"),
        (lambda v: v.update(tuple=(1, (2, 4))), ".tuple[1][1]"),
        (lambda v: v.update(tuple=[1, (2, 3)]), ".tuple"),
        (lambda v: v["array"].__setitem__(1, 3), ".array"),
        (lambda v: v.update(array=numpy.array([1, 2, 2])), ".array"),
        (lambda v: v["object"].value[1].update(deep=3), ".object.value[1].deep"),
        (lambda v: v.update(object=None), ".object"),
        (lambda v: v.pop("nothing"), ""),
        (lambda v: v["set"].add(3), ".set"),
        (lambda v: v.update(type=torch.float64), ".type"),
    ],
)
def test_nested_values_differ_where_they_differ(change, where):
    other = copy.deepcopy(VALUE)
    assert unequal(VALUE, other, "") == []
    change(other)
    assert unequal(VALUE, other, "") == [where]
    assert len(unequal(other, VALUE, "")) == 1


def test_a_number_that_is_none_equals_itself():
    """NaN with the same bits is equal; NaN and a number are not."""
    assert unequal(torch.tensor([float("nan")]), torch.tensor([float("nan")]), "") == []
    assert unequal(torch.tensor([float("nan")]), torch.tensor([1.0]), "") == [""]
