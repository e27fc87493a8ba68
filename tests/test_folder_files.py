"""Model folders as other programs and downloads leave them: they load, or one message says what to do."""

import json
import pickle
import re
import shlex
import shutil
import sys
from pathlib import Path

import pytest
import torch
from making import settings_of
from safetensors.torch import load_file, save_file
from serving import byte_tokenizer, save_checkpoint

from coconut_ds.data.problem import load_problems
from coconut_ds.errors import CheckpointError, CoconutError, DataError
from coconut_ds.model.backbone import build_backbone
from coconut_ds.model.checkpoint import _unfit_for_shards, load_folder
from coconut_ds.model.folder_files import CONVERT, INDEX, WEIGHTS
from coconut_ds.model.reference_state import load_state_dict
from coconut_ds.reasoner import load_reasoner
from coconut_ds.settings import ModelConfig
from serve.checkpoints.offered import find_checkpoints
from serve.limits import EngineSettings
from serve.models.memory import needed_bytes

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 548105171\n"


@pytest.fixture(scope="module")
def original(tmp_path_factory) -> Path:
    """A model folder with a card and without a manifest."""
    folder = save_checkpoint(tmp_path_factory.mktemp("original") / "model")
    (folder / "manifest.json").unlink()
    return folder


@pytest.fixture
def folder(original, tmp_path) -> Path:
    return Path(shutil.copytree(original, tmp_path / "model"))


def refusals(folder: Path) -> list[str]:
    """What evaluation, training and the server say about a folder."""
    tokenizer = byte_tokenizer()
    doors = (
        lambda: load_reasoner(folder),
        lambda: build_backbone(ModelConfig(model_id=str(folder), tokenizer="x"), tokenizer),
        lambda: find_checkpoints([str(folder)]),
    )
    said = []
    for door in doors:
        with pytest.raises(CoconutError) as refused:
            door()
        said.append(str(refused.value))
        assert "\n" not in said[-1]
    return said


def change(path: Path, **values: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def only(folder: Path, name: str) -> None:
    (folder / WEIGHTS).unlink()
    (folder / name).write_bytes(b"weights")


def truncate(folder: Path) -> None:
    content = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(content[: len(content) // 2])


def lose_a_shard(folder: Path) -> None:
    (folder / WEIGHTS).rename(folder / "model-00001-of-00002.safetensors")
    names = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    (folder / INDEX).write_text(json.dumps({"weight_map": names}))


def quantize(folder: Path, method: str) -> None:
    change(folder / "config.json", quantization_config={"quant_method": method, "bits": 4})


FAULTS = {
    "a Git LFS pointer": (lambda f: (f / WEIGHTS).write_text(POINTER), r"Git LFS pointer .*git lfs pull"),
    "a pointer for the tokenizer": (lambda f: (f / "tokenizer.json").write_text(POINTER), "Git LFS pointer"),
    "a web page": (
        lambda f: (f / WEIGHTS).write_text("<!DOCTYPE html><html>404"),
        "web page .*download the file again",
    ),
    "half a download": (truncate, r"not a complete safetensors file .*; it has [\d,]+ bytes"),
    "an empty file": (lambda f: (f / WEIGHTS).write_bytes(b""), "not a complete safetensors file"),
    "a missing shard": (lose_a_shard, r"model-00002-of-00002\.safetensors is missing \(1 of 2 files"),
    "an index of nothing": (
        lambda f: ((f / WEIGHTS).unlink(), (f / INDEX).write_text("{}")),
        "no weight_map",
    ),
    "GGUF only": (lambda f: only(f, "model-q4.gguf"), r"model-q4\.gguf"),
    "TensorFlow only": (lambda f: only(f, "tf_model.h5"), r"tf_model\.h5"),
    "no weights": (lambda f: (f / WEIGHTS).unlink(), "contains no weights"),
    "GPTQ": (lambda f: quantize(f, "gptq"), r"weights are quantized \(gptq\).*original model.*dequantize"),
    "AWQ": (lambda f: quantize(f, "awq"), r"weights are quantized \(awq\)"),
    "bitsandbytes": (lambda f: quantize(f, "bitsandbytes"), r"weights are quantized \(bitsandbytes\)"),
    "an adapter": (lambda f: (f / "adapter_config.json").write_text("{}"), "adapter.*merge"),
    "broken JSON": (lambda f: (f / "config.json").write_text('{"model_type": '), "not valid JSON"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_folder_that_cannot_be_loaded_says_what_to_do(folder, fault):
    """In evaluation, training and serving alike."""
    breaks, words = FAULTS[fault]
    breaks(folder)
    for said in refusals(folder):
        assert str(folder) in said
        assert re.search(words, said), said


class Bomb:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self):
        return (Path.write_text, (self._path, "it ran"))


def convert(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs the command that the message gives, in this process."""
    message = refusals(folder)[0]
    command = shlex.split(message[message.index("python -c") :])
    assert command == ["python", "-c", CONVERT, str(folder)]
    monkeypatch.setattr(sys, "argv", ["-c", str(folder)])
    exec(CONVERT, {})


def test_pickled_weights_are_converted_by_the_command_in_the_message(folder, monkeypatch):
    """The command runs no code of the pickle; the pickle is not read by evaluation, training or serving."""
    weights = load_file(folder / WEIGHTS)
    weights["lm_head.weight"] = weights["transformer.wte.weight"]
    (folder / WEIGHTS).unlink()
    torch.save(weights, folder / "pytorch_model.bin")
    convert(folder, monkeypatch)
    loaded = load_reasoner(folder).backbone.model.state_dict()
    assert all(torch.equal(loaded[name], value) for name, value in weights.items())
    with pytest.raises(CheckpointError, match=r"also there as safetensors, so remove pytorch_model\.bin"):
        find_checkpoints([str(folder)])
    (folder / "pytorch_model.bin").unlink()
    assert find_checkpoints([str(folder)]).names == ["model"]


def test_a_pickle_with_code_is_not_run_by_the_conversion(folder, tmp_path, monkeypatch):
    (folder / WEIGHTS).unlink()
    torch.save({"transformer.wte.weight": Bomb(tmp_path / "trap")}, folder / "pytorch_model.bin")
    with pytest.raises(pickle.UnpicklingError):
        convert(folder, monkeypatch)
    assert not (tmp_path / "trap").exists()


@pytest.mark.parametrize("prefix", ["transformer.", ""])
def test_masks_that_older_versions_stored_are_ignored(folder, prefix):
    """GPT-2's own folder on the hub has them, and lacks the prefix."""
    weights = load_file(folder / WEIGHTS)
    stored = {name.removeprefix("transformer.") if not prefix else name: value for name, value in weights.items()}
    for layer in range(2):
        stored[f"{prefix}h.{layer}.attn.bias"] = torch.ones(1, 1, 8, 8).tril()
        stored[f"{prefix}h.{layer}.attn.masked_bias"] = torch.tensor(-1e4)
    save_file(stored, folder / WEIGHTS, {"format": "pt"})
    model = load_folder(folder).model
    loaded = model.state_dict()
    assert all(torch.equal(loaded[name], value) for name, value in weights.items())
    unexpected, mismatched = _unfit_for_shards(folder, model)
    assert (len(unexpected), mismatched) == (4, [])
    stored[f"{prefix}h.0.attn.c_proj.bias"] = torch.zeros(3)
    stored[f"{prefix}h.0.attn.extra"] = torch.zeros(3)
    save_file(stored, folder / WEIGHTS, {"format": "pt"})
    words = r"unexpected .*attn\.extra; of another shape .*c_proj\.bias\); config\.json describes another model"
    with pytest.raises(CheckpointError, match=words):
        load_folder(folder)
    with pytest.raises(CheckpointError, match=r"of another shape .*c_proj\.bias"):
        build_backbone(ModelConfig(model_id=str(folder), tokenizer="x"), byte_tokenizer())
    assert _unfit_for_shards(folder, model)[1] == [f"{prefix}h.0.attn.c_proj.bias"]


def test_further_files_of_a_download_do_no_harm(folder):
    """A clone or download from the hub: the original weights, a second format of the tokenizer, hidden folders."""
    shutil.copy(folder / WEIGHTS, folder / "consolidated.safetensors")
    for name in ("tokenizer.model", "LICENSE", "README.md", ".DS_Store"):
        (folder / name).write_bytes(b"\x00text")
    (folder / ".git" / "hooks").mkdir(parents=True)
    (folder / ".git" / "hooks" / "pre-push.sample").write_text("#!/bin/sh")
    load_reasoner(folder)
    assert find_checkpoints([str(folder)]).names == ["model"]
    settings = EngineSettings(slots=1, max_positions=8, spare_slots=0)
    weights = sum(value.numel() * 4 for value in load_file(folder / WEIGHTS).values())
    assert needed_bytes(folder, settings) == weights + 2 * 2 * 8 * 32 * 4


def test_a_model_type_that_transformers_does_not_know_is_named(folder):
    change(folder / "config.json", model_type="mystery", auto_map={"AutoConfig": "mystery.Config"})
    with pytest.raises(CoconutError, match="does not know the model type 'mystery'; the folder brings its own code"):
        load_reasoner(folder)


def test_files_that_are_no_state_dict_say_what_they_are(folder, tmp_path):
    with pytest.raises(CheckpointError, match=r"is not a state dict of torch \(\.safetensors\); give a model folder"):
        load_reasoner(folder / WEIGHTS)
    path = tmp_path / "checkpoint_3"
    path.write_text(POINTER)
    with pytest.raises(CheckpointError, match="Git LFS pointer"):
        load_state_dict(path, settings_of(), byte_tokenizer())
    with pytest.raises(DataError, match="Git LFS pointer"):
        load_problems(path)


def test_a_folder_that_contains_models_names_them(folder, tmp_path):
    snapshot = tmp_path / "hub/models--org--tiny/snapshots/0123abc"
    shutil.copytree(folder, snapshot)
    with pytest.raises(CheckpointError, match=r"config\.json is missing\); it contains snapshots/0123abc: name one"):
        load_reasoner(tmp_path / "hub/models--org--tiny")
