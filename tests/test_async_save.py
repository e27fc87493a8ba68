"""Checkpoints that are written while training goes on: the same bits and the same guarantees as without."""

import errno
import re
import threading
import time
from pathlib import Path

import pytest
from making import contents
from making_saver import StillEngine, WrittenLater, make_saver, names, raising, with_settings
from making_training import train
from torch_engine import TorchEngine, run_folder, tiny_experiment
from waiting import wait_until

from coconut_ds.distributed import background as threads
from coconut_ds.distributed.background import Background
from coconut_ds.distributed.host_memory import available_bytes
from coconut_ds.distributed.ranks import ALONE
from coconut_ds.errors import CheckpointError
from coconut_ds.files import SEAL
from coconut_ds.model.card import ModelCard
from coconut_ds.runs.folder import ENGINE, RESUME_STATE, RunFolder
from coconut_ds.runs.resume_state import Position
from coconut_ds.training.checkpoint_writer import CheckpointWriter
from coconut_ds.training.experiment import Experiment

RESUME = f"{ENGINE}/{RESUME_STATE}"
FULL = OSError(errno.ENOSPC, "nothing left")


@pytest.fixture(scope="module")
def experiment() -> Experiment:
    return with_settings(tiny_experiment(), keep_last=None)


class Gate:
    """An engine's state whose writing waits until the gate is opened, or fails then."""

    def __init__(self, experiment: Experiment, error: Exception | None = None) -> None:
        self.still = StillEngine(experiment, raising(error) if error else lambda: None)
        self.reached, self.open = threading.Event(), threading.Event()

    def snapshot(self, folder: Path) -> WrittenLater:
        return WrittenLater(self.write)

    def write(self, folder: Path) -> None:
        self.reached.set()
        assert self.open.wait(20)
        self.still.save_state(folder)

    def model_state(self):
        return self.still.model_state()


class Opening(Background):
    """Opens a gate only once it is waited for, ``after_s`` seconds later."""

    def __init__(self, gate: Gate, after_s: float = 0.0) -> None:
        super().__init__(ALONE)
        self.gate, self.after_s = gate, after_s

    def wait(self) -> BaseException | None:
        if not self.gate.open.is_set():
            time.sleep(self.after_s)
            self.gate.open.set()
        return super().wait()


def of_training(folder: RunFolder) -> dict[str, dict[str, bytes]]:
    """The files of all checkpoints, without the number of the launch, hashes, and the length of the record, whose lines
    have times."""
    found = {path.name: contents(path) for path in folder.checkpoints()}
    for files in found.values():
        del files[SEAL]
        files[RESUME] = re.sub(rb'"metrics_bytes": \d+', b"", files[RESUME])
    return found


def test_the_files_are_those_of_a_save_that_training_waits_for(tmp_path, monkeypatch):
    """Each write, except the last one, begins only after the next update has changed the weights."""
    at_once, later = run_folder(tmp_path / "at_once"), run_folder(tmp_path / "later")
    options = ("num_epochs=1", "save_every_steps=1")
    train(at_once, *options)
    write, updates, late_ones = CheckpointWriter.write, [], []

    class Counting(TorchEngine):
        def update(self, *arguments, **options):
            updates.append(super().update(*arguments, **options))
            return updates[-1]

    def late(self, content, gather):
        number = content.resume.position.batch
        if number:
            wait_until(lambda: len(updates) > number)
            late_ones.append(content.target.name)
        write(self, content, gather)

    monkeypatch.setattr(CheckpointWriter, "write", late)
    train(later, *options, background=Background(ALONE), engine_class=Counting)
    assert late_ones == ["checkpoint_0_1", "checkpoint_0_2"]
    assert list(of_training(at_once)) == ["checkpoint_1", "checkpoint_0_2", "checkpoint_0_1"]
    assert of_training(later) == of_training(at_once)


def test_training_goes_on_and_the_next_save_waits(tmp_path, experiment):
    folder, gate = run_folder(tmp_path), Gate(experiment)
    saver = make_saver(experiment, folder, background=Opening(gate, after_s=0.15))
    saver.save(gate, Position(epoch=1), 0)
    assert gate.reached.wait(20)
    assert saver.is_saved(Position(epoch=1))
    assert names(folder) == set(), "a checkpoint exists only when it is complete"
    before = saver.seconds
    saver.save(StillEngine(experiment), Position(epoch=2), 0)
    assert "checkpoint_1" in names(folder)
    assert saver.seconds - before > 0.1, "the time of waiting counts"
    saver.finish()
    assert names(folder) == {"checkpoint_1", "checkpoint_2"}


def test_a_write_that_fails_is_raised_by_whatever_comes_next(tmp_path, experiment):
    folder, gate = run_folder(tmp_path), Gate(experiment, FULL)
    saver = make_saver(experiment, folder, background=Background(ALONE))
    saver.save(StillEngine(experiment), Position(epoch=1), 0)
    saver.save(gate, Position(epoch=2), 0)
    assert not saver.failed
    gate.open.set()
    with pytest.raises(CheckpointError, match=r"checkpoint_2: could not be written .*nothing left.*make room"):
        saver.save(StillEngine(experiment), Position(epoch=3), 0)
    assert names(folder) == {"checkpoint_1"}
    saver.save(StillEngine(experiment), Position(epoch=3), 0)
    saver.finish()
    assert names(folder) == {"checkpoint_1", "checkpoint_3"}


def test_a_run_whose_checkpoint_cannot_be_written_stops_at_the_next_update(tmp_path):
    """The write fails during the fourth update; the next checkpoint is due only at the end of the epoch."""
    background, goes_on, engines = Background(ALONE), threading.Event(), []

    class Failing(TorchEngine):
        def save_state(self, folder, *state):
            assert goes_on.wait(20)
            raise FULL

        def update(self, *arguments, **options):
            if len(self.rates) == 3:
                goes_on.set()
                wait_until(lambda: background.failed)
            return super().update(*arguments, **options)

    def made(experiment):
        engines.append(Failing(experiment))
        return engines[-1]

    options = ("global_batch_size=4", "save_every_steps=3")
    with pytest.raises(CheckpointError, match="checkpoint_0_3: could not be written"):
        train(run_folder(tmp_path), *options, background=background, engine_class=made)
    assert len(engines[0].rates) == 4


def test_after_an_error_the_launch_waits_and_says_what_could_not_be_written(tmp_path, experiment):
    lines: list[str] = []
    for error in (None, FULL):
        folder, gate = run_folder(tmp_path / str(error)), Gate(experiment, error)
        saver = make_saver(experiment, folder, background=Opening(gate), notify=lines.append)
        saver.save(gate, Position(epoch=1), 0)
        saver.close()
        assert names(folder) == (set() if error else {"checkpoint_1"})
    (line,) = lines
    assert "checkpoint_1: could not be written" in line


def test_without_memory_for_a_copy_training_waits(tmp_path, experiment, monkeypatch):
    monkeypatch.setattr(threads, "available_bytes", lambda: 1.0)
    lines: list[str] = []
    engine = TorchEngine(tiny_experiment())
    saver = make_saver(experiment, run_folder(tmp_path), background=Background(ALONE), notify=lines.append)
    for epoch in (1, 2):
        saver.save(engine, Position(epoch=epoch), 0)
        assert f"checkpoint_{epoch}" in names(saver.folder)
    (line,) = lines
    assert "too little memory" in line


def test_the_memory_of_a_machine_is_shared_by_its_ranks(monkeypatch):
    assert available_bytes() > 0
    monkeypatch.setattr(threads, "available_bytes", lambda: 800.0)
    assert Background(ALONE).has_room(400)
    assert not Background(ALONE).has_room(401)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert Background(ALONE).has_room(100)
    assert not Background(ALONE).has_room(101)


def test_a_switch_of_stages_after_a_save_is_not_in_the_checkpoint(tmp_path, experiment):
    folder, gate, position = run_folder(tmp_path), Gate(experiment), Position(epoch=1, stage_switches=[1])
    saver = make_saver(experiment, folder, background=Background(ALONE))
    saver.save(gate, position, 0)
    position.stage_switches.append(2)
    gate.open.set()
    saver.finish()
    assert ModelCard.read(folder.path / "checkpoint_1").provenance["stage_switches"] == [1]
