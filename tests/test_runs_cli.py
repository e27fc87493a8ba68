"""``coconut-runs`` on made-up runs: lists whatever is broken, prunes only what may go, finds what is damaged."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from coconut_ds.files import seal
from coconut_ds.runs.catalogue import read_attempt
from coconut_ds.runs.cli import main
from coconut_ds.runs.folder import ENGINE, RESUME_STATE, RunFolder
from coconut_ds.runs.identity import write_ingredients
from coconut_ds.runs.lock import FILE as LOCK
from coconut_ds.runs.lock import RunLock
from coconut_ds.runs.manifest import RunManifest, now, this_launch
from coconut_ds.runs.report import age, size
from coconut_ds.training.metrics import MetricsLog

RUN, OTHER = "aa11aa11aa11", "aa22bb22bb22"
FIRST, SECOND, THIRD = "20260101-000000-aaaa", "20260102-000000-bbbb", "20260103-000000-cccc"


def make_checkpoint(folder: RunFolder, epoch: int, stage: int, accuracy: float, batch: int = 0) -> Path:
    path = folder.checkpoint(epoch, batch)
    (path / ENGINE).mkdir(parents=True)
    (path / "model.safetensors").write_bytes(bytes(range(256)) * 8)
    card = {"stage": stage, "provenance": {"validation_accuracy": None if batch else accuracy}}
    (path / "coconut.json").write_text(json.dumps(card))
    (path / ENGINE / RESUME_STATE).write_text("{}")
    seal(path, epoch=epoch)
    return path


def make_attempt(root: Path, signature: str, attempt: str, updated: str, **facts: Any) -> RunFolder:
    """Four checkpoints; the best, 2, is neither new nor of the highest accuracy, which an easier stage has."""
    folder = RunFolder(root / "toy" / signature / attempt)
    folder.path.mkdir(parents=True)
    folder.config.write_text("{}\n")
    accuracies = {1: (0, 0.9), 2: (1, 0.6), 3: (1, 0.5), 4: (1, 0.4)}
    for epoch, (stage, accuracy) in accuracies.items():
        make_checkpoint(folder, epoch, stage, accuracy)
    values: dict[str, Any] = {
        "status": "completed",
        "stage": 1,
        "resume_epoch": 4,
        "num_epochs": 4,
        "last_checkpoint": "checkpoint_4",
        "best_checkpoint": "checkpoint_2",
        "best_accuracy": 0.6,
        "launches": [this_launch(2, "8 × 2 × 2")],
        **facts,
    }
    fixed = {"name": "toy", "signature": signature, "attempt": attempt, "host": "there", "pid": 1, "world_size": 2}
    manifest = RunManifest(**fixed, **values, code={"commit": "abc"}, versions={}, started=now(), updated=updated)
    manifest.write(folder.manifest)
    # ``write`` sets the time; these runs are of the past.
    folder.manifest.write_text(folder.manifest.read_text().replace(manifest.updated, updated))
    return folder


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three attempts at two runs; the one begun first was active last."""
    root = tmp_path_factory.mktemp("made")
    for number, (signature, attempt, lr) in enumerate([(RUN, SECOND, 1e-4), (OTHER, THIRD, 3e-5), (RUN, FIRST, 1e-4)]):
        make_attempt(root, signature, attempt, f"2026-01-0{number + 1}T00:00:00+00:00")
        write_ingredients(root / "toy" / signature, {"training.lr": lr, "data.kind": "file", "model.dropout": 0.1})
    return root


@pytest.fixture
def root(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "outputs"))


@pytest.fixture
def call(root: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    def run(command: str, *words: str) -> tuple[int, str, str]:
        code = main([command, "--root", str(root), *words])
        out, err = capsys.readouterr()
        return code, out, err

    return run


def hold(folder: RunFolder, **facts: Any) -> None:
    """A lock that a launch left behind, or that one on another machine holds."""
    with RunLock(folder.path.parent, print):
        text = json.loads((folder.path.parent / LOCK).read_text())
    (folder.path.parent / LOCK).write_text(json.dumps({**text, **facts}))


def names(folder: RunFolder) -> list[str]:
    return sorted(path.name for path in folder.path.iterdir() if "checkpoint" in path.name)


BROKEN = {
    "empty": "",
    "cut": "name: toy\nstatus: run",
    "no mapping": "- 1\n",
    "binary": "\x00\x01",
    "no date": "started: 2026-13-45\n",
    "a wrong status": "status: resting\n",
}


@pytest.mark.parametrize("text", BROKEN.values(), ids=BROKEN)
def test_list_tells_what_checkpoints_know_where_the_manifest_is_broken(root, call, text):
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
    assert values["next"].startswith("starts a new attempt")
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


def test_diff_names_each_ingredient_that_differs(root, call):
    assert call("diff", RUN, SECOND)[0] == 0, "attempts at one run"
    code, out, _ = call("diff", "--json", FIRST, str(root / "toy" / OTHER))
    assert code == 1
    assert json.loads(out)["differences"] == [{"key": "training.lr", "left": 1e-4, "right": 3e-5}]
    write_ingredients(root / "toy" / OTHER, {"training.lr": 1e-4, "data.kind": "file"})
    code, out, _ = call("diff", "aa1", "aa2")
    assert (code, out.splitlines()[-1].split()) == (1, ["model.dropout", "0.1", "–"])
    (root / "toy" / OTHER / "signature.json").unlink()
    code, out, err = call("diff", "aa1", "aa2")
    assert (code, out, err.startswith("error: "), err.count("\n")) == (2, "", True, 1)


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("aa", ["is ambiguous", RUN, OTHER]),
        ("2026", ["is ambiguous", FIRST, SECOND, THIRD]),
        (RUN, ["matches 2 attempts", FIRST, SECOND]),
        ("20260103-000000-cccd", ["no such attempt", "holds 3 attempts", f"did you mean {THIRD}"]),
        ("bbbb", ["no such attempt", f"did you mean {SECOND}"]),
        ("zzz", ["no such attempt", f"the newest {FIRST}"]),
        ("", ["empty argument"]),
    ],
)
def test_a_word_that_means_no_one_attempt_is_an_error_that_helps(call, word, expected):
    code, out, err = call("show", word)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith("error: ")
    assert [part for part in expected if part not in err] == []


def test_prune_keeps_the_last_the_best_and_what_may_be_all_there_is(root, call):
    folder, bare = (RunFolder(root / "toy" / RUN / attempt) for attempt in (FIRST, SECOND))
    (folder.checkpoint(4) / "model.safetensors").write_bytes(b"cut")
    make_checkpoint(folder, 3, 1, 0.0, batch=7)
    for left in (".checkpoint_5.part", ".checkpoint_0.gone.9", ".checkpoint_4.universal"):
        (folder.path / left).mkdir()
    shutil.copytree(folder.checkpoint(1), folder.path / ".checkpoint_1.old.9")
    # Killed between two renames: the only copy of checkpoint 9 has lost its name.
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


def test_verify_names_the_file_of_one_flipped_bit(root, call):
    assert call("verify")[0] == 0
    path = RunFolder(root / "toy" / RUN / FIRST).checkpoint(3)
    content = bytearray((path / "model.safetensors").read_bytes())
    content[1000] ^= 1
    (path / "model.safetensors").write_bytes(content)
    code, out, err = call("verify")
    assert (code, err) == (1, "")
    assert out.splitlines()[0] == f"damaged {path}"
    assert out.splitlines()[1].strip().startswith("model.safetensors has other content")
    assert out.splitlines()[2].endswith("1 damaged")
    code, out, _ = call("verify", "--json", str(path), THIRD)
    values = json.loads(out)
    assert (code, values["damaged"], len(values["checkpoints"])) == (1, 1, 5)
    assert call("verify", SECOND, str(path.with_name("checkpoint_2")))[0] == 0, "the damaged one is not named"


def test_colours_are_for_terminals_without_no_color(root, call, monkeypatch):
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    coloured = call("list")[1]
    monkeypatch.setenv("NO_COLOR", "1")
    plain = call("list")[1]
    assert "\033[" in coloured
    assert "\033[" not in plain
    assert coloured.replace("\033[36m", "").replace("\033[0m", "").split() == plain.split()


def test_sizes_and_ages_are_for_people():
    assert [size(count) for count in (0, 1023, 1024, 1024**2 - 1, 3 * 1024**3)] == [
        "0 B",
        "1023 B",
        "1.0 KiB",
        "1.0 MiB",
        "3.0 GiB",
    ]
    assert [age(seconds) for seconds in (-5, 59, 60, 3 * 3600, 200_000)] == ["0 s", "59 s", "1 min", "3 h", "2 d"]


def test_a_linked_folder_is_searched_and_a_loop_of_links_ends(root, call, tmp_path):
    (root / "toy").rename(tmp_path / "disk")
    (root / "toy").symlink_to(tmp_path / "disk")
    (tmp_path / "disk" / "loop").symlink_to(root)
    assert len(json.loads(call("list", "--json")[1])) == 3


def test_the_command_starts_as_a_module_and_bears_a_closed_pipe(root):
    command = [sys.executable, "-m", "coconut_ds.runs", "list", "--root", str(root), "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.close()
        assert process.stderr.read() == b""
