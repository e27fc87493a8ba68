"""``coconut-runs list`` and ``show``: what is known of a run, even if its files are broken or a launch is running."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from making_runs import FIRST, OTHER, RUN, SECOND, THIRD, calling, hold, make_attempt, make_runs

from coconut_ds.runs.catalogue import read_attempt
from coconut_ds.runs.folder import ENGINE, RESUME_STATE, RunFolder
from coconut_ds.runs.lock import FILE as LOCK
from coconut_ds.runs.lock import RunLock
from coconut_ds.runs.manifest import now
from coconut_ds.training.metrics import MetricsLog


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return make_runs(tmp_path / "outputs")


@pytest.fixture
def call(root: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    return calling(root, capsys)


BROKEN = {
    "empty": "",
    "cut": "name: toy\nstatus: run",
    "no mapping": "- 1\n",
    "binary": "\x00\x01",
    "no date": "started: 2026-13-45\n",
    "a wrong status": "status: resting\n",
}


@pytest.mark.parametrize("text", BROKEN.values(), ids=BROKEN)
def test_list_falls_back_to_checkpoints_if_the_manifest_is_broken(root, call, text):
    folder = RunFolder(root / "toy" / RUN / SECOND)
    folder.manifest.write_text(text)
    (folder.checkpoint(4) / "model.safetensors").write_bytes(b"cut")
    (folder.checkpoint(3) / "manifest.json").write_text('{"files": {"model.safetensors": 5}}')
    code, out, _ = call("list", "--json")
    values = {one["attempt"]: one for one in json.loads(out)}
    assert code == 0
    assert set(values) == {FIRST, SECOND, THIRD}
    found = values[SECOND]
    known = (found["status"], found["stage"], found["epoch"], found["best_accuracy"], found["best_checkpoint"])
    assert known == ("unknown", 1, 2, 0.6, "checkpoint_2")
    assert values[FIRST]["status"] == "completed"


def test_list_shows_the_last_active_at_the_end_in_columns_and_without_colours(root, call):
    head, *rows = call("list")[1].splitlines()
    assert head.split() == ["name", "signature", "attempt", "status", "stage", "epoch", "best", "age", "size"]
    assert [row.split()[2] for row in rows] == [SECOND, THIRD, FIRST]
    assert rows[0].split()[:7] == ["toy", RUN, SECOND, "completed", "1", "4/4", "60.0%"]
    assert len({len(row) for row in (head, *rows)}) == 1
    code, out, err = call("list", "--name", "tow")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "there are toy" in err


def test_a_running_attempt_is_stale_when_its_process_is_gone(root, call):
    folder = make_attempt(root, RUN, "20260104-000000-dddd", now(), status="running", resume_epoch=2)

    def status() -> str:
        return read_attempt(folder.path).status

    assert status() == "stale", "no lock"
    with RunLock(folder.path.parent, print) as lock:
        assert status() == "running", "a launch that has not said what it works on"
        lock.name_attempt(folder.path.name)
        assert status() == "running"
        assert not read_attempt(root / "toy" / RUN / FIRST).is_alive
        lock.name_attempt(FIRST)
        assert status() == "stale", "the launch works on another attempt"
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    hold(folder, pid=ended.pid)
    assert status() == "stale", "this machine knows that the process ended"
    hold(folder, host="elsewhere")
    assert status() == "running", "another machine's lock was touched just now"
    os.utime(folder.path.parent / LOCK, (0, 0))
    assert status() == "stale", "and long ago"
    (folder.path.parent / LOCK).write_text("")
    assert status() == "running", "a lock that is just being written"
    (folder.path.parent / LOCK).unlink()
    assert "continues 20260104-000000-dddd from checkpoint_4" in call("show", "20260104")[1]


def test_show_tells_manifest_launches_checkpoints_record_and_what_comes_next(root, call):
    folder = RunFolder(root / "toy" / OTHER / THIRD)
    with MetricsLog(folder.metrics) as metrics:
        metrics.log({"epoch": 3, "global_step": 6, "eval/accuracy": 0.25})
        metrics.log({"epoch": 4, "global_step": 8, "eval/accuracy": 0.5, "eval/loss": float("nan")})
        metrics.log({"epoch": 5, "global_step": 9, "train/loss": 0.125})
    with folder.metrics.open("a") as file:
        file.write('{"epoch": 5, "eval/accuracy": 0.')
    (folder.checkpoint(4) / "coconut.json").unlink()
    code, out, _ = call("show", "--json", OTHER)
    values = json.loads(out, parse_constant=lambda text: pytest.fail(f"{text} is no JSON"))
    assert code == 0
    assert values["manifest"]["launches"][0]["batch"] == "8 × 2 × 2"
    assert values["last_evaluation"]["eval/accuracy"] == 0.5
    assert values["last_update"]["train/loss"] == 0.125
    complete = [(one["name"], one["complete"], one["best"]) for one in values["checkpoints"]]
    assert complete[:3] == [("checkpoint_4", False, False), ("checkpoint_3", True, False), ("checkpoint_2", True, True)]
    assert values["next"].startswith("says that the run is complete and stops")
    text = call("show", str(folder.checkpoint(2)))[1]
    for words in ("code.commit", "8 × 2 × 2", "coconut.json is missing", "eval/accuracy 0.5", values["next"]):
        assert words in text


@pytest.mark.parametrize(
    ("facts", "broken", "expected"),
    [
        ({"status": "failed", "reason": "interrupted"}, [], f"continues {THIRD} from checkpoint_4"),
        ({"status": "failed"}, [4], f"continues {THIRD} from checkpoint_3"),
        ({"status": "failed"}, [1, 2, 3, 4], f"refuses to start: no checkpoint of {THIRD} can be used"),
        ({"num_epochs": 9}, [], f"continues {THIRD} from checkpoint_4"),
    ],
)
def test_what_auto_does_next_follows_status_and_checkpoints(root, call, facts, broken, expected):
    folder = RunFolder(root / "toy" / OTHER / THIRD)
    manifest = read_attempt(folder.path).manifest.model_copy(update=facts)
    manifest.write(folder.manifest)
    for epoch in broken:
        (folder.checkpoint(epoch) / ENGINE / RESUME_STATE).unlink()
    assert json.loads(call("show", "--json", THIRD)[1])["next"] == expected
    with RunLock(folder.path.parent, print):
        assert "refuses to start: a launch of" in json.loads(call("show", "--json", THIRD)[1])["next"]


def test_a_linked_folder_is_searched_and_a_loop_of_links_ends(root, call, tmp_path):
    (root / "toy").rename(tmp_path / "disk")
    (root / "toy").symlink_to(tmp_path / "disk")
    (tmp_path / "disk" / "loop").symlink_to(root)
    assert len(json.loads(call("list", "--json")[1])) == 3
