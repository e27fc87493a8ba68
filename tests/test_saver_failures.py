"""What remains of a run's checkpoints if one cannot be written or removed, or a rank fails."""

import errno
import json
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from making import contents
from making_locks import elsewhere, write
from making_saver import StillEngine, make_saver, manifest_of, names, raising, run_epochs, with_settings
from torch_engine import run_folder, tiny_experiment

from coconut_ds.distributed.ranks import Ranks
from coconut_ds.errors import CheckpointError
from coconut_ds.files import is_complete
from coconut_ds.runs.folder import ENGINE, RESUME_STATE, RunFolder
from coconut_ds.runs.lock import RunLock
from coconut_ds.runs.resume_state import Position
from coconut_ds.training.experiment import Experiment


@pytest.fixture(scope="module")
def experiment() -> Experiment:
    return tiny_experiment()


FULL = OSError(errno.ENOSPC, "nothing left")


@pytest.mark.parametrize(
    ("error", "asks_for_room"),
    [
        (FULL, True),
        (OSError(errno.EDQUOT, "quota"), True),
        (RuntimeError("torch could not write"), True),
        (Exception("tokenizers could not write"), True),
        (OSError(errno.EACCES, "not yours"), False),
    ],
)
@pytest.mark.parametrize("part", ["engine", "model"])
def test_a_write_that_fails_leaves_the_earlier_checkpoints_and_nothing_else(
    tmp_path, experiment, monkeypatch, error, asks_for_room, part
):
    """The error names the checkpoint and its cause; the next save works as if nothing had happened."""
    folder = run_folder(tmp_path)
    saver = make_saver(with_settings(experiment, keep_last=1), folder, manifest_of(folder))
    run_epochs(saver, [(0, 0.5)])
    before, known = contents(folder.checkpoint(1)), folder.manifest.read_text()
    engine = StillEngine(experiment, raising(error)) if part == "engine" else StillEngine(experiment)
    with monkeypatch.context() as patch:
        if part == "model":
            tokenizer = experiment.backbone.tokenizer
            patch.setattr(type(tokenizer), "save_pretrained", lambda *arguments, **options: raising(error)())
        with pytest.raises(CheckpointError, match="checkpoint_2") as caught:
            saver.save(engine, Position(epoch=2), 0)
    cause = error.strerror if isinstance(error, OSError) else str(error)
    assert cause in str(caught.value)
    assert ("room" in str(caught.value)) == asks_for_room
    assert names(folder) == {"checkpoint_1"}
    assert contents(folder.checkpoint(1)) == before
    assert folder.manifest.read_text() == known
    saver.save(StillEngine(experiment), Position(epoch=2), 0)
    assert names(folder) == {"checkpoint_1", "checkpoint_2"}, "the best and the newest"


def test_a_programming_error_is_not_taken_for_a_full_disk(tmp_path, experiment):
    with pytest.raises(TypeError, match="a bug"):
        make_saver(experiment, run_folder(tmp_path)).save(
            StillEngine(experiment, raising(TypeError("a bug"))), Position(epoch=1), 0
        )


def test_a_checkpoint_that_cannot_be_removed_is_a_warning_and_goes_later(tmp_path, experiment, monkeypatch):
    folder, lines = run_folder(tmp_path), []
    saver = make_saver(with_settings(experiment, keep_last=1, keep_best=False), folder, notify=lines.append)
    saver.save(StillEngine(experiment), Position(epoch=1), 0)
    rename = Path.rename

    def busy(self: Path, target: Path) -> Path:
        if self.name == "checkpoint_1":
            raise OSError(errno.EBUSY, "somebody reads it")
        return rename(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", busy)
        saver.save(StillEngine(experiment), Position(epoch=2), 0)
    (line,) = lines
    assert "checkpoint_1" in line
    assert "somebody reads it" in line
    assert names(folder) == {"checkpoint_1", "checkpoint_2"}
    saver.save(StillEngine(experiment), Position(epoch=3), 0)
    assert (names(folder), len(lines)) == ({"checkpoint_3"}, 1)


def test_a_launch_whose_lock_was_taken_writes_nothing(tmp_path, experiment):
    folder = run_folder(tmp_path)
    with RunLock(folder.path.parent, print) as lock:
        saver = make_saver(experiment, folder, lock=lock)
        saver.save(StillEngine(experiment), Position(epoch=1), 0)
        assert not saver.lock_lost
        write(folder.path.parent, elsewhere())
        with pytest.raises(CheckpointError, match="another launch"):
            saver.save(StillEngine(experiment), Position(epoch=2), 0)
        assert saver.lock_lost
    assert names(folder) == {"checkpoint_1"}


class Board:
    """Where rank threads exchange values."""

    def __init__(self, size: int) -> None:
        self.values: list[Any] = [None] * size
        self.barrier = threading.Barrier(size, timeout=20)

    def exchange(self, rank: int, value: Any) -> list[Any]:
        self.values[rank] = value
        self.barrier.wait()
        values = list(self.values)
        self.barrier.wait()
        return values


@dataclass(frozen=True)
class ThreadRanks(Ranks):
    """Ranks that are threads: the collectives of ``Ranks`` over a board."""

    board: Board | None = None

    def gather(self, value: Any) -> list[Any]:
        return self.board.exchange(self.rank, value)

    def total(self, value: float) -> float:
        return sum(self.gather(value))

    def from_first(self, value: Any) -> Any:
        return self.gather(value)[0]

    def await_first(self) -> None:
        """``from_first`` waits without a limit."""


def save_on_ranks(
    folder: RunFolder,
    experiment: Experiment,
    failing: dict[int, Callable[[], None]],
    engine_class: type[StillEngine] = StillEngine,
) -> list[Any]:
    """Saves once on two ranks; returns the error of each, or None. ``failing``: a function per rank that raises."""
    board, errors = Board(2), [None, None]

    def save(rank: int) -> None:
        mine = replace(experiment, ranks=ThreadRanks(rank, 2, board=board))
        try:
            engine = engine_class(mine, failing.get(rank, lambda: None))
            make_saver(mine, folder).save(engine, Position(epoch=1), 0)
        except CheckpointError as error:
            errors[rank] = str(error)

    threads = [threading.Thread(target=save, args=(rank,)) for rank in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive()
    return errors


def test_every_rank_writes_its_part_and_the_first_one_the_rest(tmp_path, experiment):
    folder = run_folder(tmp_path)
    assert save_on_ranks(folder, experiment, {}) == [None, None]
    assert names(folder) == {"checkpoint_1"}
    assert is_complete(folder.checkpoint(1))
    parts = {path.name for path in (folder.checkpoint(1) / ENGINE).iterdir()}
    assert parts == {"state_0.bin", "state_1.bin", "random_0.safetensors", "random_1.safetensors", RESUME_STATE}
    assert json.loads((folder.checkpoint(1) / ENGINE / RESUME_STATE).read_text())["world_size"] == 2


@pytest.mark.parametrize("rank", [0, 1])
def test_if_one_rank_cannot_write_all_stop_with_its_error(tmp_path, experiment, rank):
    folder = run_folder(tmp_path)
    errors = save_on_ranks(folder, experiment, {rank: raising(FULL)})
    assert errors[0] == errors[1]
    assert f"rank {rank}: " in errors[0]
    assert f"rank {1 - rank}: " not in errors[0]
    assert names(folder) == set()


def test_a_part_that_was_written_to_another_disk_is_missed(tmp_path, experiment):
    """Rank 1 wrote without an error, and rank 0 does not see its file: the folder is not shared."""
    folder = run_folder(tmp_path)

    class OnAnotherDisk(StillEngine):
        def save_state(self, folder: Path) -> None:
            if self.experiment.ranks.is_first:
                super().save_state(folder)

    errors = save_on_ranks(folder, experiment, {}, OnAnotherDisk)
    assert "rank 1" in errors[0]
    assert errors[0] == errors[1]
    assert names(folder) == set()
