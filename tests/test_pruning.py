"""``coconut-runs prune``: which checkpoints are removed, and which never are."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from making_runs import FIRST, OTHER, RUN, SECOND, THIRD, calling, make_attempt, make_checkpoint, make_runs, names

from coconut_ds.runs.fencing import Fence
from coconut_ds.runs.folder import RunFolder
from coconut_ds.runs.lock import RunLock
from coconut_ds.runs.manifest import now


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return make_runs(tmp_path / "outputs")


@pytest.fixture
def call(root: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    return calling(root, capsys)


def test_prune_keeps_the_last_the_best_and_the_only_copies(root, call):
    folder, bare = (RunFolder(root / "toy" / RUN / attempt) for attempt in (FIRST, SECOND))
    (folder.checkpoint(4) / "model.safetensors").write_bytes(b"cut")
    make_checkpoint(folder, 3, 1, 0.0, batch=7)
    for left in (".checkpoint_5.part", ".checkpoint_0.gone.9", ".checkpoint_4.universal"):
        (folder.path / left).mkdir()
    shutil.copytree(folder.checkpoint(1), folder.path / ".checkpoint_1.old.9")
    # A process killed between two renames: the only copy of checkpoint 9 has a temporary name.
    make_checkpoint(folder, 9, 1, 0.0).rename(folder.path / ".checkpoint_9.old.9")
    for path in bare.checkpoints():
        (path / "manifest.json").unlink()
    before, named = names(folder), str(root / "toy" / RUN)

    code, out, _ = call("prune", "--keep-last", "1", "--dry-run", named)
    assert (code, names(folder), out.count("would remove")) == (0, before, 7)
    code, out, _ = call("prune", "--keep-last", "1", named)
    assert (code, names(folder)) == (0, [".checkpoint_9.old.9", "checkpoint_2", "checkpoint_3_7"])
    assert out.count("removed ") == 7
    assert out.splitlines()[-1].startswith("freed ")
    assert len(names(bare)) == 4, "none is complete"
    assert len(names(RunFolder(root / "toy" / OTHER / THIRD))) == 4, "not named"
    call("prune", "--keep-last", "1", "--no-keep-best")
    assert names(folder) == [".checkpoint_9.old.9", "checkpoint_3_7"]
    assert names(RunFolder(root / "toy" / OTHER / THIRD)) == ["checkpoint_4"]
    with pytest.raises(SystemExit):
        call("prune", "--keep-last", "0")


def test_prune_finds_the_best_where_the_manifest_does_not_say(root, call):
    folder = RunFolder(root / "toy" / OTHER / THIRD)
    folder.manifest.unlink()
    call("prune", "--keep-last", "1", THIRD)
    assert names(folder) == ["checkpoint_2", "checkpoint_4"]


def test_prune_leaves_a_living_attempt_alone(root, call):
    folder = make_attempt(root, RUN, "20260104-000000-dddd", now(), status="running")
    (folder.path / ".checkpoint_5.part").mkdir()
    before = names(folder)
    with RunLock(folder.path.parent, print) as lock:
        lock.name_attempt(folder.path.name)
        assert "skipped" in call("prune", "--keep-last", "1", folder.path.name)[1]
        assert names(folder) == before
    call("prune", "--keep-last", "1", folder.path.name)
    assert names(folder) == ["checkpoint_2", "checkpoint_4"]


def test_a_launch_that_was_suspended_while_checkpoints_were_pruned_changes_nothing(root, call):
    folder = make_attempt(root, RUN, "20260104-000000-dddd", now(), status="running")
    sleeper = Fence(folder.path.parent)
    part = sleeper.part("checkpoint_9")
    part.mkdir()
    out = call("prune", "--keep-last", "1", folder.path.name)[1]
    assert f"removed {part}" in out
    with pytest.raises(OSError, match="No such file"):
        sleeper.discard(folder.checkpoints()[0])
    assert names(folder) == ["checkpoint_2", "checkpoint_4"]
