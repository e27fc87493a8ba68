"""Folders that would run code or read other files when they are loaded are refused before any of it happens."""

import json
import os
import pickle
import shutil
from pathlib import Path

import pytest
from serving import change_json, copy_checkpoint, save_checkpoint

from coconut_ds.errors import CheckpointError
from serve.checkpoints.offered import find_checkpoints
from serve.errors import UnavailableError
from serve.limits import EngineSettings
from serve.models.pool import Models


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return save_checkpoint(tmp_path_factory.mktemp("unsafe") / "tiny")


class Bomb:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self):
        return (Path.write_text, (self._path, "it ran"))


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
    folder, trap = copy_checkpoint(checkpoint, tmp_path / "model"), tmp_path / "trap"
    models = Models(find_checkpoints([str(folder)]), EngineSettings(slots=2), 8, 10**9)
    attack(folder, trap)
    with pytest.raises(CheckpointError, match=str(folder)):
        find_checkpoints([str(folder)])
    with pytest.raises(UnavailableError):
        models.hold("model")
    assert not trap.exists()
