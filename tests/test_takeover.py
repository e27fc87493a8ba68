"""A launch that lost its run in the middle of a save, at any of its steps, changes nothing any more."""

import json
import pickle
from pathlib import Path

import pytest
from launching import environment, run
from making_locks import elsewhere, write

from coconut_ds.errors import ConfigError
from coconut_ds.runs import fencing
from coconut_ds.runs.fencing import Fence, LostRunError, left_over_parts, pinned
from coconut_ds.runs.lock import RunLock


@pytest.mark.slow
def test_a_launch_that_lost_its_run_at_a_step_of_a_save_writes_nothing():
    done = run([Path(__file__).parent / "takeover.py", "--trials", "6", "--processes", "1", "--json"], environment())
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    result = json.loads(done.stdout.splitlines()[-1])
    assert (result["trials"], result["bytes_by_the_loser"], result["unexplained_errors"]) == (6, 0, 0)
    assert result["steps"] > 200


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_numbers_grow_with_each_launch_and_earlier_folders_go(tmp_path):
    first = Fence(tmp_path)
    first.part("checkpoint_1").mkdir()
    first.close()
    assert names(tmp_path) == [], "a run that consists of nothing else leaves nothing"
    (tmp_path / "attempt").mkdir()
    numbers = []
    for _ in range(11):
        fence = Fence(tmp_path)
        numbers.append(fence.number)
        fence.part("killed").mkdir()
        assert len(left_over_parts(tmp_path)) == 1
    assert numbers == list(range(1, 12))
    fence.close()
    assert names(tmp_path) == [".launch.11", "attempt"]
    assert Fence(tmp_path).number == 12


def test_a_launch_that_lost_the_run_before_it_has_a_folder_removes_none(tmp_path):
    """It slept after it took the lock; the launch that took the lock from it has a folder with a smaller number."""
    with RunLock(tmp_path, print) as sleeper:
        write(tmp_path, elsewhere())
        winner = Fence(tmp_path)
        with pytest.raises(LostRunError, match="another launch took the run over"):
            Fence(tmp_path, sleeper)
        assert names(tmp_path) == [winner.path.name, "lock.json"]
        sleeper.lost = True


def test_the_error_keeps_its_text_on_other_ranks():
    """They receive it as a pickle."""
    error = LostRunError.of(Path("runs/one"))
    assert str(pickle.loads(pickle.dumps(error))) == str(error)


def test_each_change_fails_although_the_check_before_it_passed(tmp_path):
    """The launch is suspended right after the check, as if it had none."""
    attempt = tmp_path / "attempt"
    attempt.mkdir()
    loser = Fence(tmp_path)
    whole, kept = loser.part("checkpoint_1"), attempt / "kept"
    whole.mkdir()
    kept.write_text("kept")
    with pinned(whole) as path:
        (path / "before").write_text("written")
        Fence(tmp_path)
        with pytest.raises(FileNotFoundError):
            (path / "after").mkdir(parents=True, exist_ok=True)
    for change in (
        lambda: loser.put(whole, attempt / "checkpoint_1"),
        lambda: loser.write(kept, "changed"),
        lambda: loser.write(attempt / "new", "new"),
        lambda: loser.discard(kept),
        lambda: loser.make_folder(attempt / "folder"),
    ):
        with pytest.raises(FileNotFoundError):
            change()
    loser.close()
    assert names(tmp_path) == [".launch.2", "attempt"]
    assert (names(attempt), kept.read_text()) == (["kept"], "kept")


@pytest.mark.parametrize("exchanges", [True, False])
def test_a_folder_replaces_a_folder(tmp_path, monkeypatch, exchanges):
    """Also where the system cannot exchange two folders."""
    if not exchanges:
        monkeypatch.setattr(fencing, "_exchange", lambda left, right: False)
    fence, target = Fence(tmp_path), tmp_path / "attempt" / "checkpoint_1"
    for content in ("one", "two"):
        part = fence.part(target.name)
        part.mkdir()
        (part / "file").write_text(content)
        target.parent.mkdir(exist_ok=True)
        fence.put(part, target)
        assert (target / "file").read_text() == content
    assert names(target.parent) == ["checkpoint_1"]
    assert list(fence.path.iterdir()) == []


def test_a_folder_that_cannot_be_removed_is_left_to_the_next_launch(tmp_path, monkeypatch):
    """Its former name is what the earlier launch writes to, so a new launch must rename it."""
    Fence(tmp_path).part("checkpoint_1").mkdir()
    monkeypatch.setattr(fencing, "PATIENCE_S", 0.1)

    def busy(path: Path) -> None:
        raise OSError("busy")

    lines: list[str] = []
    with monkeypatch.context() as patch:
        patch.setattr(fencing.shutil, "rmtree", busy)
        Fence(tmp_path, notify=lines.append)
    assert [path.name.rpartition(".")[0] for path in tmp_path.iterdir() if "gone" in path.name] == [".launch.1.gone"]
    assert "cannot be removed (busy)" in "".join(lines)
    assert Fence(tmp_path, notify=lines.append).number == 3
    assert names(tmp_path) == [".launch.3"]
    assert len(lines) == 1
    monkeypatch.setattr(Path, "rename", lambda path, target: busy(path))
    with pytest.raises(ConfigError, match="cannot be renamed"):
        Fence(tmp_path)
