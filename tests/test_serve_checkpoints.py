"""Which checkpoints a server offers under which names, and what it refuses to load before any of it runs."""

import json
import os
import pickle
import shutil
import struct
from pathlib import Path

import pytest
from launching import environment, run
from serving import ROOT, save_checkpoint

from coconut_ds.errors import CheckpointError
from coconut_ds.files import seal
from coconut_ds.runs.cli import main
from serve.checkpoints.offered import find_checkpoints
from serve.errors import QueueFullError, UnavailableError, UnknownModelError
from serve.limits import EngineSettings
from serve.models.memory import needed_bytes
from serve.models.pool import Models


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return save_checkpoint(tmp_path_factory.mktemp("served") / "tiny")


def copy(checkpoint: Path, folder: Path) -> Path:
    shutil.copytree(checkpoint, folder)
    (folder / "manifest.json").unlink()
    return folder


def a_run(checkpoint: Path, root: Path, name: str, attempt: str, *numbers: int) -> None:
    for number in numbers:
        folder = copy(checkpoint, root / name / "abcdef" / attempt / f"checkpoint_{number}")
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
        copy(checkpoint, tmp_path / name)
    (copy(checkpoint, tmp_path / "plain") / "coconut.json").unlink()
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


class Bomb:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self):
        return (Path.write_text, (self._path, "it ran"))


def change_json(path: Path, **values: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


CODE = "from pathlib import Path\nPath({path!r}).write_text('it ran')\n"


def pickled_weights(folder, trap):
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb(trap)))


def pickle_beside_weights(folder, trap):
    (folder / "training_args.bin").write_bytes(pickle.dumps(Bomb(trap)))


def remote_code(folder, trap):
    (folder / "modeling_mine.py").write_text(CODE.format(path=str(trap)))
    change_json(folder / "config.json", auto_map={"AutoModelForCausalLM": "modeling_mine.Model"})


def remote_code_elsewhere(folder, trap):
    change_json(folder / "config.json", auto_map={"AutoModelForCausalLM": "someone/repo--modeling.Model"})


def tokenizer_with_code(folder, trap):
    change_json(folder / "tokenizer_config.json", auto_map={"AutoTokenizer": ["a--tokenizer.T", None]})


def tokenizer_elsewhere(folder, trap):
    change_json(folder / "tokenizer_config.json", vocab_file="/etc/hostname")


def weights_by_link(folder, trap):
    outside = trap.with_name("outside.safetensors")
    shutil.move(folder / "model.safetensors", outside)
    (folder / "model.safetensors").symlink_to(outside)


def folder_by_link(folder, trap):
    outside = trap.with_name("elsewhere")
    outside.mkdir()
    (folder / "more").symlink_to(outside)


def weights_by_index(folder, trap):
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "../x.safetensors"}}))


def kernel_of_a_hub(folder, trap):
    change_json(folder / "config.json", _attn_implementation="someone/kernel")


def adapter(folder, trap):
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "/elsewhere"}))


def a_pipe(folder, trap):
    os.mkfifo(folder / "extra.json")


def deep_json(folder, trap):
    (folder / "generation_config.json").write_text("[" * 100_000 + "]" * 100_000)


ATTACKS = [
    pickled_weights,
    pickle_beside_weights,
    remote_code,
    remote_code_elsewhere,
    tokenizer_with_code,
    tokenizer_elsewhere,
    weights_by_link,
    folder_by_link,
    weights_by_index,
    kernel_of_a_hub,
    adapter,
    a_pipe,
    deep_json,
]


@pytest.mark.parametrize("attack", ATTACKS)
def test_a_malicious_folder_is_refused_and_nothing_in_it_runs(checkpoint, tmp_path, attack):
    """At the start, and again if a folder changed since then."""
    folder, trap = copy(checkpoint, tmp_path / "model"), tmp_path / "trap"
    models = Models(find_checkpoints([str(folder)]), EngineSettings(slots=2), 8, 10**9)
    attack(folder, trap)
    with pytest.raises(CheckpointError, match=str(folder)):
        find_checkpoints([str(folder)])
    with pytest.raises(UnavailableError):
        models.hold("model")
    assert not trap.exists()


def test_a_refused_folder_among_others_is_left_out(checkpoint, tmp_path, caplog):
    a_run(checkpoint, tmp_path / "outputs", "demo", "20260101-000000-aaaa", 1, 2)
    bad = tmp_path / "outputs/demo/abcdef/20260101-000000-aaaa/checkpoint_2"
    (bad / "modeling.py").write_text("")
    assert find_checkpoints([str(tmp_path / "outputs")]).names == ["demo/checkpoint_1"]
    assert "modeling.py" in caplog.text


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


def test_the_least_recently_used_model_leaves_and_a_held_one_never(checkpoint, tmp_path):
    folders = {name: copy(checkpoint, tmp_path / name) for name in "abc"}
    settings = EngineSettings(slots=2, max_positions=64)
    one = needed_bytes(folders["a"], settings)
    models = Models(find_checkpoints(map(str, folders.values())), settings, 8, 2 * one)
    for name in "abab":
        models.release(models.hold(name))
    assert list(models.loaded) == ["a", "b"]
    with models.holding("a"):
        with models.holding("c"):
            assert list(models.loaded) == ["a", "c"]
            with pytest.raises(QueueFullError) as full:
                models.hold("b")
            assert full.value.retry_after_s
        models.hold("b")
        assert list(models.loaded) == ["a", "b"]
    models.close()
    with pytest.raises(UnavailableError):
        Models(models.checkpoints, settings, 8, one - 1).hold("a")


def test_the_memory_that_a_model_needs_is_told_by_its_headers(checkpoint, tmp_path):
    settings = EngineSettings(slots=3, max_positions=100, spare_slots=0)
    models = Models(find_checkpoints([str(checkpoint)]), settings, 8, 10**9)
    with models.holding("tiny") as thread:
        thread.run(lambda reasoner: reasoner.generate("a", max_new_tokens=1)).result()
        weights = sum(p.numel() * 4 for p in thread.reasoner.backbone.model.parameters())
        cache = 2 * 2 * 3 * 100 * 32 * 4
        assert needed_bytes(checkpoint, settings) == weights + cache
    models.close()
    broken = copy(checkpoint, tmp_path / "broken")
    (broken / "model.safetensors").write_bytes(struct.pack("<Q", 10**12))
    with pytest.raises(CheckpointError, match="not a safetensors"):
        needed_bytes(broken, settings)
