"""The training loop over an engine in plain torch: its numbers, its checkpoints, and stopping it at any moment."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from making_saver import make_saver, names
from making_training import AskedToStop, Scripted, column, record, run_left_alone_and_stopped, train
from slow_training import slow_training
from torch_engine import DROPOUT, TorchEngine, run_folder, tiny_experiment

from coconut_ds.distributed.interrupts import Interrupted
from coconut_ds.errors import DataError, NonFiniteError
from coconut_ds.evaluation.evaluator import Evaluator
from coconut_ds.files import is_complete
from coconut_ds.runs.folder import ENGINE, RESUME_STATE, RunFolder
from coconut_ds.runs.resume_state import Position, ResumeState
from coconut_ds.training import saver
from coconut_ds.training.batches import epoch_batches
from coconut_ds.training.experiment import Experiment
from coconut_ds.training.metrics import MetricsLog, read_metrics
from coconut_ds.training.progress_bar import ProgressBar
from coconut_ds.training.trainer import Trainer


@pytest.mark.parametrize(
    "overrides",
    [("reset_optimizer=stage",), ("reset_optimizer=epoch", "replay_prob=0.5"), ("reset_optimizer=never",)],
)
def test_losses_are_those_of_plain_training_one_problem_at_a_time(tmp_path, overrides):
    """Replayed stages, an uneven last batch, clipping, warm-up, optimizer resets; validation at the epoch's stage."""
    folder = run_folder(tmp_path)
    overrides = (*overrides, "lr=0.01", "warmup_steps=5", "save_every=9")
    position, engine = train(folder, *overrides)
    losses, validation = slow_training(tiny_experiment(*overrides))
    assert column(folder, "train/loss") == pytest.approx(losses, rel=1e-4)
    assert column(folder, "eval/loss") == pytest.approx(validation, rel=1e-4)
    assert column(folder, "train/stage") == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert column(folder, "eval/stage") == [0, 1, 2]
    assert column(folder, "train/lr") == engine.rates
    steps = [(line["epoch"], line["global_step"]) for line in record(folder) if "train/loss" in line]
    assert steps == [(1 + number // 3, 1 + number) for number in range(9)]
    assert (position.epoch, position.batch, position.global_step) == (3, 0, 9)


def test_without_resets_the_optimizer_remembers(tmp_path):
    """The test above could not tell resets apart if they changed nothing."""
    rates = {}
    for kind in ("stage", "epoch", "never"):
        folder = run_folder(tmp_path / kind)
        options = ("epochs_per_stage=2", "num_epochs=3", "warmup_steps=100", "save_every=9", f"reset_optimizer={kind}")
        rates[kind] = train(folder, *options)[1].rates
    since_reset = {
        "stage": [1, 2, 3, 4, 5, 6, 1, 2, 3],
        "epoch": [1, 2, 3, 1, 2, 3, 1, 2, 3],
        "never": [1, 2, 3, 4, 5, 6, 7, 8, 9],
    }
    for kind, counts in since_reset.items():
        assert rates[kind] == pytest.approx([2e-3 * count / 100 for count in counts])


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> RunFolder:
    folder = run_folder(tmp_path_factory.mktemp("undisturbed"))
    train(folder, *RESUMED)
    return folder


RESUMED = (DROPOUT, "advance=accuracy", "max_epochs_per_stage=1", "advance_at=1.0")
"""Stages are recorded in the run, and dropout draws random numbers in each update."""


@pytest.mark.parametrize("looks", [[0], [3], [4, 1], [7, 2, 2], [2] * 4])
def test_a_run_that_is_stopped_at_any_moment_and_continued_is_the_run_left_alone(tmp_path, undisturbed, looks):
    """Before the first update, within an epoch, at its end, during validation; once or in one launch after another."""
    folder = run_folder(tmp_path)
    for at in looks:
        with pytest.raises(Interrupted, match="SIGTERM"):
            train(folder, *RESUMED, interrupts=AskedToStop(at))
        assert all(is_complete(path) for path in folder.checkpoints())
    assert (names(folder) == set()) == (looks == [0]), "nothing is saved of a run that has made no update"
    position, _ = train(folder, *RESUMED)
    assert record(folder) == record(undisturbed)
    assert position.stage_switches == [1, 2, 3]
    ends = [one.checkpoint(3) for one in (folder, undisturbed)]
    for part in ("model.safetensors", "coconut.json", f"{ENGINE}/torch_state.pt"):
        here, there = ((end / part).read_bytes() for end in ends)
        assert here == there or part.endswith(".pt"), part
    states = [torch.load(end / ENGINE / "torch_state.pt", weights_only=False)["optimizer"]["state"] for end in ends]
    for key, values in states[1].items():
        assert all(torch.equal(states[0][key][name], value) for name, value in values.items())


def test_a_rate_that_falls_over_each_stage_is_the_same_after_a_resume(tmp_path):
    """Six updates in stage 0 and three in stage 1, after a warm-up of one; the run is stopped within both stages."""
    falling = ("lr_schedule=linear", "lr_schedule_over=stage", "warmup_steps=1", "epochs_per_stage=2", DROPOUT)
    whole, stopped, _ = run_left_alone_and_stopped(tmp_path, *falling, stops=(4, 6))
    factors = [1, 1, 0.8, 0.6, 0.4, 0.2, 1, 1, 0.5]
    assert column(whole, "train/lr") == pytest.approx([2e-3 * factor for factor in factors])
    assert record(stopped) == record(whole)
    weights = [(one.checkpoint(3) / "model.safetensors").read_bytes() for one in (whole, stopped)]
    assert weights[0] == weights[1]


def test_a_checkpoint_is_written_every_so_many_updates_and_at_the_end_of_each_epoch(tmp_path):
    """Updates 2, 4, 6 and 8 are due; update 6 ends an epoch, whose checkpoint follows the validation."""
    folder = run_folder(tmp_path)
    train(folder, "save_every_steps=2")
    expected = {"checkpoint_0_2", "checkpoint_1", "checkpoint_1_1", "checkpoint_2", "checkpoint_2_2", "checkpoint_3"}
    assert names(folder) == expected
    states = {path.name: json.loads((path / ENGINE / RESUME_STATE).read_text()) for path in folder.checkpoints()}
    positions = {name: state["position"] for name, state in states.items()}
    assert {name: one["global_step"] for name, one in positions.items()} == {
        "checkpoint_0_2": 2, "checkpoint_1": 3, "checkpoint_1_1": 4,
        "checkpoint_2": 6, "checkpoint_2_2": 8, "checkpoint_3": 9,
    }  # fmt: skip
    losses = column(folder, "train/loss")
    assert positions["checkpoint_2_2"]["loss_sum"] == pytest.approx(sum(losses[6:8]))
    assert positions["checkpoint_2"]["loss_sum"] == 0.0


def test_a_stop_during_validation_does_not_wait_for_its_end(tmp_path):
    """The fifth look is the first one of the validation after three updates."""
    folder = run_folder(tmp_path)
    with pytest.raises(Interrupted):
        train(folder, interrupts=AskedToStop(4))
    assert names(folder) == {"checkpoint_0_3"}
    assert column(folder, "eval/accuracy") == []


def test_a_stop_right_after_a_checkpoint_writes_no_other(tmp_path):
    """Neither the launch that has just saved, nor the next one, which is stopped before its first update."""
    folder, saves = run_folder(tmp_path), []

    class Counting(TorchEngine):
        def save_state(self, folder: Path, *state: Any) -> None:
            saves.append(folder)
            super().save_state(folder, *state)

    for at in (2, 0):
        with pytest.raises(Interrupted):
            train(folder, "save_every_steps=2", interrupts=AskedToStop(at), engine_class=Counting)
        assert (names(folder), len(saves)) == ({"checkpoint_0_2"}, 1)


SCRIPTED = ("advance=accuracy", "advance_at=0.8", "save_every=9", "keep_best=false")


@pytest.mark.parametrize(
    ("shares", "options", "stages", "switches"),
    [
        ([0.9, 0.9, 0.9, 0.9], [], [0, 1, 2, 3], [1, 2, 3]),
        ([0.0, 0.9, 0.0, 0.9], [], [0, 0, 1, 1], [2, 4]),
        ([0.9, 0.9, 0.9, 0.9], ["min_epochs_per_stage=2"], [0, 0, 1, 1], [2, 4]),
        ([0.0, 0.0, 0.0, 0.0], ["max_epochs_per_stage=3"], [0, 0, 0, 1], [3]),
        ([0.9, 0.9, 0.9, 1.0], ["stop_at=0.9"], [0, 1, 2, 3], [1, 2, 3]),
        ([0.9, 0.9, 0.9, 0.5, 0.9, 0.0], ["stop_at=0.9", "num_epochs=6"], [0, 1, 2, 3, 3], [1, 2, 3]),
        ([1.0, 0.0, 1.0, 1.0], ["stop_at=1.0"], [0, 1, 1, 2], [1, 3, 4]),
    ],
)
def test_accuracy_ends_stages_and_the_run(tmp_path, monkeypatch, shares, options, stages, switches):
    """A stage ends once 0.8 of the problems are wholly right; the run, at its last stage, once ``stop_at`` are."""
    evaluator = Scripted(list(shares))
    monkeypatch.setattr(Experiment, "evaluator", lambda self: evaluator)
    folder = run_folder(tmp_path)
    position, _ = train(folder, "num_epochs=4", *options, *SCRIPTED)
    assert column(folder, "eval/stage") == stages
    assert column(folder, "train/stage") == [stage for stage in stages for _ in range(3)]
    assert position.stage_switches == switches
    assert column(folder, "curriculum/stage_switches") == [switches[: n + 1] for n in range(len(switches))]
    assert position.solved == (len(stages) < len(shares) or ("stop_at=0.9" in options and stages[-1] == 3))
    last = ResumeState.read(folder.checkpoint(len(stages)) / ENGINE / RESUME_STATE)
    assert asdict(last.position) == asdict(position)


def test_a_loss_that_is_not_finite_is_reported_with_its_problems_and_ends_the_run(tmp_path):
    """Problems are counted in the epoch's training set, so that a user can look at them."""

    class Spoiled(TorchEngine):
        def update(self, *arguments):
            if len(self.rates) == 4:
                raise NonFiniteError("loss is nan, not finite")
            return super().update(*arguments)

    folder = run_folder(tmp_path)
    with pytest.raises(NonFiniteError, match=r"update 5 \(epoch 2\).*loss is nan, not finite") as caught:
        train(folder, engine_class=Spoiled)
    assert str(sorted(epoch_batches(0, 1, 20, 8)[1])) in str(caught.value)
    assert names(folder) == {"checkpoint_1"}
    assert len(column(folder, "train/loss")) == 4


def test_a_solved_run_is_left_alone(tmp_path):
    """``fit`` on a position that is solved, or past the last epoch, does nothing."""
    for position in (Position(epoch=1, solved=True), Position(epoch=3)):
        folder = run_folder(tmp_path / str(position.epoch))
        experiment = tiny_experiment()
        engine = TorchEngine(experiment)
        own_saver = make_saver(experiment, folder)
        trainer = Trainer(experiment, engine, own_saver, ProgressBar(is_first=False), None, AskedToStop())
        before = asdict(position)
        assert asdict(trainer.fit(position)) == before
        assert (engine.rates, list(Path(folder.path).iterdir())) == ([], [])


@pytest.mark.parametrize("error", [DataError("no such node"), KeyError("a bug")])
def test_an_epoch_is_saved_before_a_failing_validation_ends_the_run(tmp_path, monkeypatch, undisturbed, error):
    """The next launch continues with the validation, and its numbers are those of a run that was left alone."""
    folder = run_folder(tmp_path)

    def fail(*arguments, **options) -> None:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(Evaluator, "run", fail)
        for _ in range(2):
            with pytest.raises(type(error), match=str(error)):
                train(folder, *RESUMED)
            assert names(folder) == {"checkpoint_0_3"}
            assert len(column(folder, "train/loss")) == 3, "the second launch trains nothing again"
    if isinstance(error, KeyError):
        train(folder, *RESUMED)
        assert record(folder) == record(undisturbed)
        ends = [one.checkpoint(3) / "model.safetensors" for one in (folder, undisturbed)]
        assert ends[0].read_bytes() == ends[1].read_bytes()


def test_what_a_run_can_do_without_does_not_cost_it_an_epoch(tmp_path, monkeypatch):
    """Samples and their analysis come after the checkpoint; a line that cannot be printed ends a saved run."""
    closed = BrokenPipeError("the reader of the log is gone")

    def fail(*arguments, **options) -> None:
        raise closed

    for number, (owner, name) in enumerate(
        [(RunFolder, "write_samples"), (ProgressBar, "line"), (saver, "with_category")]
    ):
        folder = run_folder(tmp_path / str(number))
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, fail)
            if name == "write_samples":
                train(folder, "num_epochs=1")
            else:
                with pytest.raises(BrokenPipeError):
                    train(folder, "num_epochs=1")
        in_validation = name == "line"
        assert names(folder) == {"checkpoint_0_3" if in_validation else "checkpoint_1"}
        assert len(column(folder, "eval/accuracy")) == (0 if in_validation else 1), "a resume records it once"


def test_a_failing_mirror_is_a_warning_and_the_record_goes_on(tmp_path):
    class Broken:
        name = "wandb"

        def __init__(self) -> None:
            self.steps: list[int] = []

        def log(self, values: dict, step: int) -> None:
            self.steps.append(step)
            if step == 2:
                raise ConnectionError("no route")

        def close(self) -> None:
            raise AssertionError("closed after it failed")

    mirror, lines = Broken(), []
    with MetricsLog(tmp_path / "metrics.jsonl", [mirror], lines.append) as metrics:
        for step in range(1, 5):
            metrics.log({"global_step": step})
    assert mirror.steps == [1, 2]
    assert [line["global_step"] for line in read_metrics(tmp_path / "metrics.jsonl")] == [1, 2, 3, 4]
    assert lines == ["warning: wandb failed (ConnectionError: no route); metrics.jsonl has all metrics"]
