"""Which checkpoints a server offers under which names, and which folders it leaves out."""

import shutil
from pathlib import Path
from typing import Any

import pytest
from launching import environment, run
from serving import ROOT, change_json, copy_checkpoint, save_checkpoint

from coconut_ds.errors import CheckpointError
from coconut_ds.files import remove_folder, seal
from coconut_ds.reasoner import Reasoner
from coconut_ds.runs.cli import main
from serve.checkpoints.offered import find_checkpoints
from serve.errors import ServiceError, UnknownModelError
from serve.limits import EngineSettings
from serve.models import loading
from serve.models.pool import Models


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return save_checkpoint(tmp_path_factory.mktemp("served") / "tiny")


def a_run(checkpoint: Path, root: Path, name: str, attempt: str, *numbers: int) -> None:
    for number in numbers:
        folder = copy_checkpoint(checkpoint, root / name / "abcdef" / attempt / f"checkpoint_{number}")
        (folder / "engine").mkdir()
        (folder / "engine" / "state.safetensors").write_bytes(b"pickle")
        seal(folder)


def test_folders_and_runs_have_names(checkpoint, tmp_path):
    """A folder is named after itself or as requested; a run's checkpoints after the run, the newest first."""
    a_run(checkpoint, tmp_path / "outputs", "demo", "20260101-000000-aaaa", 1, 2)
    a_run(checkpoint, tmp_path / "outputs", "demo", "20260102-000000-bbbb", 2)
    a_run(checkpoint, tmp_path / "outputs", "other", "20260103-000000-cccc", 5)
    broken = tmp_path / "outputs/demo/abcdef/20260102-000000-bbbb/checkpoint_3"
    broken.mkdir()
    assert find_checkpoints([str(checkpoint)]).names == ["tiny"]
    assert find_checkpoints([f"mine={checkpoint}"]).names == ["mine"]
    assert set(find_checkpoints([str(tmp_path / "outputs")]).names) == {
        "demo/20260101-000000-aaaa/checkpoint_2",
        "demo/20260102-000000-bbbb/checkpoint_2",
        "demo/checkpoint_1",
        "other/checkpoint_5",
    }
    attempt = tmp_path / "outputs/demo/abcdef/20260101-000000-aaaa"
    assert find_checkpoints([str(attempt)]).names == ["demo/checkpoint_2", "demo/checkpoint_1"]
    assert find_checkpoints([str(attempt / "checkpoint_1")]).names == ["demo/checkpoint_1"]


def test_a_folder_of_model_folders_is_served(checkpoint, tmp_path, caplog):
    """Next to runs, under their paths; a model without a card is left out with a warning."""
    a_run(checkpoint, tmp_path, "demo", "20260101-000000-aaaa", 1)
    for name in ("b", "a", "group/c"):
        copy_checkpoint(checkpoint, tmp_path / name)
    (copy_checkpoint(checkpoint, tmp_path / "plain") / "coconut.json").unlink()
    assert find_checkpoints([str(tmp_path)]).names == ["demo/checkpoint_1", "a", "b", "group/c"]
    assert find_checkpoints([f"mine={tmp_path / 'group'}"]).names == ["mine/c"]
    assert "plain: coconut.json is missing" in caplog.text
    (tmp_path / "only").mkdir()
    (tmp_path / "plain").rename(tmp_path / "only/plain")
    with pytest.raises(CheckpointError, match=r"coconut\.json is missing"):
        find_checkpoints([str(tmp_path / "only")])


def cached(checkpoint: Path, entry: Path, revision: str) -> Path:
    """A model in a cache of Hugging Face: its files are links to others, which are named after their content."""
    snapshot = entry / "snapshots" / revision
    snapshot.mkdir(parents=True)
    (entry / "blobs").mkdir(exist_ok=True)
    for number, path in enumerate(sorted(checkpoint.iterdir())):
        if path.name != "manifest.json":
            shutil.copy(path, entry / "blobs" / f"{revision}{number}")
            (snapshot / path.name).symlink_to(f"../../blobs/{revision}{number}")
    return snapshot


def test_a_cached_model_is_served_under_its_name_on_the_hub(checkpoint, tmp_path):
    entry = tmp_path / "hub" / "models--org--tiny"
    snapshot = cached(checkpoint, entry, "0123456789abcdef")
    for given in (snapshot, entry, tmp_path / "hub"):
        assert find_checkpoints([str(given)]).names == ["org/tiny"]
    models = Models(find_checkpoints([str(snapshot)]), EngineSettings(slots=2), 8, 10**9)
    with models.holding("org/tiny") as thread:
        thread.run(lambda reasoner: reasoner.generate("a", max_new_tokens=1)).result()
        assert thread.run(lambda reasoner: reasoner.name).result() == "org-tiny"
    models.close()
    cached(checkpoint, entry, "fedcba9876543210")
    assert find_checkpoints([str(entry)]).names == ["org/tiny@01234567", "org/tiny@fedcba98"]
    (snapshot / "LICENSE").symlink_to("/etc/hostname")
    with pytest.raises(CheckpointError, match=f"is a link to a path outside {entry}"):
        find_checkpoints([str(snapshot)])


def test_an_edited_card_is_reported_at_the_start_and_served_once_accepted(checkpoint, tmp_path, caplog, capsys):
    a_run(checkpoint, tmp_path, "demo", "20260101-000000-aaaa", 1, 2)
    folder = tmp_path / "demo/abcdef/20260101-000000-aaaa/checkpoint_2"
    change_json(folder / "coconut.json", num_thoughts=3)
    assert find_checkpoints([str(tmp_path)]).names == ["demo/checkpoint_1"]
    assert f"accept the changes with: coconut-runs accept {folder}" in caplog.text
    with pytest.raises(CheckpointError, match=r"is damaged: coconut\.json"):
        find_checkpoints([str(folder)])
    assert main(["accept", str(folder)]) == 0
    assert find_checkpoints([str(tmp_path)])["demo/checkpoint_2"].card.num_thoughts == 3


def test_requests_can_only_name_checkpoints(checkpoint, tmp_path):
    checkpoints = find_checkpoints([str(checkpoint)])
    for name in ("", "..", str(checkpoint), "tiny/../tiny", "tiny/"):
        with pytest.raises(UnknownModelError):
            checkpoints[name]
    with pytest.raises(CheckpointError, match="NAME="):
        find_checkpoints([str(checkpoint), str(checkpoint)])
    with pytest.raises(CheckpointError, match="no such folder"):
        find_checkpoints([str(tmp_path / "nothing")])
    with pytest.raises(CheckpointError, match="no complete checkpoint"):
        find_checkpoints([str(tmp_path)])


def test_a_refused_folder_among_others_is_left_out(checkpoint, tmp_path, caplog):
    a_run(checkpoint, tmp_path / "outputs", "demo", "20260101-000000-aaaa", 1, 2)
    bad = tmp_path / "outputs/demo/abcdef/20260101-000000-aaaa/checkpoint_2"
    (bad / "modeling.py").write_text("")
    assert find_checkpoints([str(tmp_path / "outputs")]).names == ["demo/checkpoint_1"]
    assert "modeling.py" in caplog.text


def test_a_place_in_which_every_folder_is_refused_is_left_out_if_the_user_named_none(checkpoint, tmp_path, caplog):
    (copy_checkpoint(checkpoint, tmp_path / "outputs" / "bad") / "modeling.py").write_text("")
    places = [str(tmp_path / "outputs"), str(checkpoint)]
    with pytest.raises(CheckpointError, match=r"modeling\.py"):
        find_checkpoints(places)
    caplog.clear()
    assert find_checkpoints(places, skip_refused=True).names == ["tiny"]
    assert f"skipped {places[0]}: " in caplog.text
    with pytest.raises(CheckpointError, match="found no complete checkpoint"):
        find_checkpoints(places[:1], skip_refused=True)


@pytest.mark.slow
def test_the_engine_folder_of_a_checkpoint_is_never_opened(checkpoint, tmp_path):
    """Records every file that a process opens while it finds, loads and asks a checkpoint of a run."""
    a_run(checkpoint, tmp_path, "demo", "20260101-000000-aaaa", 1)
    (tmp_path / "script.py").write_text(f"""
import sys
sys.path[0] = {str(ROOT)!r}
opened = []
sys.addaudithook(lambda event, args: opened.append(str(args[0])) if event == "open" else None)
from serve.requests.asking import Ask
from serve.launch import make_service
from serve.limits import EngineSettings, Limits
service, _ = make_service([{str(tmp_path)!r}], EngineSettings(slots=2), Limits())
print(service.answer_now(Ask("demo/checkpoint_1", ("a",), max_new_tokens=3))[0].finish_reason)
service.close()
print([path for path in opened if "/engine/" in path and {str(tmp_path)!r} in path])
print(any("model.safetensors" in path for path in opened))
""")
    done = run([tmp_path / "script.py"], environment())
    assert done.returncode == 0, done.stderr
    assert done.stdout.split("\n")[:3] == ["length", "[]", "True"]


@pytest.mark.parametrize("lost", ["", "model.safetensors"], ids=["the folder", "its weights"])
def test_a_checkpoint_that_vanishes_during_its_load_is_one_line_of_the_log(
    lost, checkpoint, tmp_path, monkeypatch, caplog
):
    folder = copy_checkpoint(checkpoint, tmp_path / "one")
    models, load = Models(find_checkpoints([str(tmp_path)]), EngineSettings(2), 8, 10**9), loading.load_reasoner

    def vanishing(place: Path, **options: Any) -> Reasoner:
        remove_folder(place) if not lost else (place / lost).unlink()
        return load(place, **options)

    monkeypatch.setattr(loading, "load_reasoner", vanishing)
    with pytest.raises(ServiceError):
        models.hold("one")
    (line,) = [one for one in caplog.records if one.levelname == "ERROR"]
    assert line.exc_info is None
    assert f"one cannot be loaded: {folder}{'' if lost else ' no longer exists'}" in line.getMessage()
    models.close()
