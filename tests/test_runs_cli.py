"""``coconut-runs`` on made-up runs: comparing, verifying, naming attempts, and what a terminal shows."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from making_runs import FIRST, OTHER, RUN, SECOND, THIRD, calling, make_attempt, make_runs

from coconut_ds.files import seal
from coconut_ds.runs.catalogue import NotFoundError, read_attempt
from coconut_ds.runs.cli import main
from coconut_ds.runs.folder import RunFolder
from coconut_ds.runs.identity import write_ingredients
from coconut_ds.runs.manifest import now
from coconut_ds.runs.naming import model_name
from coconut_ds.runs.report import age, size
from coconut_ds.runs.selection import best_checkpoint


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return make_runs(tmp_path / "outputs")


@pytest.fixture
def call(root: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    return calling(root, capsys)


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
def test_an_ambiguous_or_unknown_word_is_a_helpful_error(call, word, expected):
    code, out, err = call("show", word)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith("error: ")
    assert [part for part in expected if part not in err] == []


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


@pytest.fixture
def accepting(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    def run(*words: str) -> tuple[int, str, str]:
        return main(["accept", *words]), *capsys.readouterr()

    return run


def test_an_edit_of_a_text_file_is_shown_and_accepted(root, call, accepting):
    """Afterwards the checkpoint counts as complete, and its manifest says what was accepted."""
    path = RunFolder(root / "toy" / RUN / FIRST).checkpoint(4)
    card = path / "coconut.json"
    before = card.read_text()
    card.write_text(before.replace('"stage": 1', '"stage": 12'))
    command = f"coconut-runs accept {path}"
    assert f"  if you edited coconut.json yourself, accept the changes with: {command}" in call("verify", str(path))[1]
    code, out, _ = accepting("--dry-run", str(path))
    assert (code, out.splitlines()[-1]) == (0, "would accept 1 edited file")
    assert [line for line in out.splitlines() if line[:2] in ("-{", "+{")] == [f"-{before}", f"+{card.read_text()}"]
    assert call("verify", str(path))[0] == 1
    assert accepting(str(path))[1].splitlines()[-1] == "accepted 1 edited file"
    assert call("verify", str(path))[0] == 0
    assert accepting(str(path))[1:] == ("no text file was edited\n", "")
    manifest = json.loads((path / "manifest.json").read_text())
    assert [(one["file"], one["before"]["bytes"]) for one in manifest["accepted"]] == [("coconut.json", len(before))]
    assert manifest["epoch"] == 4


def test_weights_and_broken_json_cannot_be_accepted(root, call, accepting):
    path = RunFolder(root / "toy" / RUN / FIRST).checkpoint(4)
    (path / "coconut.json").write_text('{"stage": ')
    assert "is not valid JSON" in accepting(str(path))[2]
    (path / "coconut.json").write_text("{}")
    (path / "model.safetensors").write_bytes(bytes(2048))
    assert accepting(str(path))[0] == 0
    code, out, _ = call("verify", str(path))
    assert (code, "model.safetensors has other content" in out, "coconut.json" in out) == (1, True, False)
    (path / "manifest.json").unlink()
    assert "manifest.json is missing or broken" in accepting(str(path))[2]
    assert "no such folder" in accepting(str(path.with_name("none")))[2]


def test_the_former_text_of_a_long_file_is_not_shown(root, accepting):
    path = RunFolder(root / "toy" / RUN / FIRST).checkpoint(4)
    (path / "config.json").write_text(json.dumps({"long": "x" * 9000}))
    seal(path, epoch=4)
    (path / "config.json").write_text('{"short": 1}')
    assert 'its former text was not recorded; it now reads:\n{"short": 1}\n' in accepting(str(path))[1]


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


def test_the_command_starts_as_a_module_and_survives_a_closed_pipe(root):
    command = [sys.executable, "-m", "coconut_ds.runs", "list", "--root", str(root), "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.close()
        assert process.stderr.read() == b""


def test_a_run_can_be_named_by_its_name_or_its_beginning(root, call):
    """A name means all attempts at all runs of this name."""
    assert call("verify", "toy")[1].startswith("12 checkpoints")
    assert call("verify", "to")[1].startswith("12 checkpoints")
    assert call("show", "toy")[1].splitlines()[0] == str(root / "toy" / RUN / FIRST), "the last active one"
    make_attempt(root / "more", "cc33cc33cc33", "20260105-000000-eeee", now())
    (root / "more" / "toy").rename(root / "more" / "tall")
    code, out, _ = call("show", "tal")
    assert (code, out.splitlines()[0]) == (0, str(root / "more" / "tall" / "cc33cc33cc33" / "20260105-000000-eeee"))
    assert "t: is ambiguous; it may be tall or toy" in call("show", "t")[2]
    assert "did you mean tall" in call("show", "talk")[2]


def test_an_interrupted_run_is_listed_as_interrupted(root, call):
    folder = RunFolder(root / "toy" / OTHER / THIRD)
    for reason, status in (("interrupted", "interrupted"), ("DataError: no such file", "failed")):
        manifest = read_attempt(folder.path).manifest.model_copy(update={"status": "failed", "reason": reason})
        manifest.write(folder.manifest)
        (row,) = (line for line in call("list")[1].splitlines() if THIRD in line)
        assert row.split()[3] == status
        assert call("show", THIRD)[1].splitlines()[1].split(",")[0] in (status, f"failed ({reason})")


def test_a_run_or_a_folder_of_runs_means_its_best_checkpoint(root):
    first = RunFolder(root / "toy" / RUN / FIRST)
    chosen, line = best_checkpoint(first.path)
    assert chosen == first.checkpoint(2), "the best one by the manifest, neither the newest nor the most accurate"
    assert line.endswith(f"using the best checkpoint, {chosen} (stage 1, 60.0% on validation problems)")
    better = RunFolder(root / "toy" / OTHER / THIRD)
    manifest = read_attempt(better.path).manifest
    manifest.model_copy(update={"best_accuracy": 0.7, "best_checkpoint": "checkpoint_3"}).write(better.manifest)
    chosen, line = best_checkpoint(root)
    assert chosen == better.checkpoint(3)
    assert "of 3 attempts" in line
    (chosen / "model.safetensors").unlink()
    assert best_checkpoint(root)[0].parent in (first.path, RunFolder(root / "toy" / RUN / SECOND).path)
    (first.checkpoint(1) / "config.json").touch()
    for own in (first.checkpoint(1), root / "none"):
        assert best_checkpoint(own) == (own, None)
    with pytest.raises(NotFoundError, match="none of its 1 attempts has a complete checkpoint"):
        best_checkpoint(better.path)


def test_the_name_of_a_checkpoint_has_that_of_its_run(root, tmp_path):
    assert model_name(RunFolder(root / "toy" / RUN / FIRST).checkpoint(2)) == f"toy-{FIRST}-checkpoint_2"
    (tmp_path / "a" / "model").mkdir(parents=True)
    assert model_name(tmp_path / "a" / "model") == "a-model"
