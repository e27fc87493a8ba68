"""Model folders: read back identically, and refused as a whole if anything in them is wrong."""

import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from making import make_backbone, make_card, settings_of
from safetensors.torch import load_file, save_file
from tiny_models import SHAPES
from transformers import AutoModelForCausalLM

from coconut_ds.data.tokens import build_word_tokenizer
from coconut_ds.errors import CheckpointError, ModelError
from coconut_ds.files import SEAL, seal
from coconut_ds.model.backbone import add_marker_rows
from coconut_ds.model.card import ModelCard
from coconut_ds.model.checkpoint import load_folder, save_model
from coconut_ds.model.reference_state import load_state_dict
from coconut_ds.reasoner import load_reasoner
from coconut_ds.runs.cli import main


@pytest.mark.parametrize("family", list(SHAPES))
def test_a_folder_loads_back_identically_here_and_with_plain_transformers(tmp_path, family):
    backbone = make_backbone(family)
    folder = tmp_path / "checkpoint_1"
    state = {name: p.detach() for name, p in backbone.model.named_parameters()}
    save_model(folder, backbone.model, state, backbone.tokenizer, make_card(backbone))
    plain = AutoModelForCausalLM.from_pretrained(folder)
    again = load_folder(folder)
    for model in (plain, again.model):
        loaded = model.state_dict()
        assert loaded.keys() == backbone.model.state_dict().keys()
        for name, value in backbone.model.state_dict().items():
            assert torch.equal(loaded[name], value), name
    assert again.markers == backbone.markers
    assert again.tokenizer.get_vocab() == backbone.tokenizer.get_vocab()
    assert ModelCard.read(folder) == make_card(backbone)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint_1"]


def test_threads_that_load_and_build_at_once_get_whole_models(tmp_path):
    backbone = make_backbone()
    save_model(tmp_path / "model", backbone.model, backbone.model.state_dict(), backbone.tokenizer, make_card(backbone))
    expected = backbone.model.state_dict()

    def load(number: int) -> bool:
        if number % 3 == 0:
            make_backbone()
        state = load_folder(tmp_path / "model").model.state_dict()
        return state.keys() == expected.keys() and all(torch.equal(state[key], expected[key]) for key in state)

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(load, range(24)))
    model = make_backbone().model
    assert model.get_input_embeddings().weight is model.get_output_embeddings().weight


def test_a_flipped_bit_is_refused_and_a_model_copied_without_the_engine_loads(tmp_path):
    backbone = make_backbone()
    run = tmp_path / "checkpoint_1"
    save_model(run, backbone.model, backbone.model.state_dict(), backbone.tokenizer, make_card(backbone))
    (run / "engine").mkdir()
    (run / "engine" / "state.pt").write_bytes(b"state")
    (run / SEAL).unlink()
    with pytest.raises(CheckpointError, match="is damaged: manifest"):
        load_folder(run)
    seal(run)
    load_folder(run)
    shutil.copytree(run, tmp_path / "model", ignore=shutil.ignore_patterns("engine"))
    load_folder(tmp_path / "model")
    (run / "engine" / "state.pt").unlink()
    with pytest.raises(CheckpointError, match="is damaged: engine"):
        load_folder(run)
    weights = tmp_path / "model" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(CheckpointError, match="has other content"):
        load_folder(tmp_path / "model")


def test_an_edited_card_loads_once_its_edit_is_accepted(tmp_path, capsys):
    backbone = make_backbone()
    folder = tmp_path / "checkpoint_1"
    save_model(folder, backbone.model, backbone.model.state_dict(), backbone.tokenizer, make_card(backbone))
    card = folder / "coconut.json"
    card.write_text(card.read_text().replace('"num_thoughts": 6', '"num_thoughts": 4'))
    with pytest.raises(CheckpointError, match=r"is damaged: coconut\.json .*if you edited coconut\.json"):
        load_reasoner(folder)
    assert main(["accept", str(folder)]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert ('-  "num_thoughts": 6,' in shown, '+  "num_thoughts": 4,' in shown) == (True, True)
    assert load_reasoner(folder).card.num_thoughts == 4


def test_marker_rows_that_are_there_are_never_touched(tmp_path):
    backbone = make_backbone()
    with torch.no_grad():
        backbone.model.get_input_embeddings().weight[list(backbone.markers.all())] = 7.0
    folder = tmp_path / "one"
    save_model(folder, backbone.model, backbone.model.state_dict(), backbone.tokenizer, make_card(backbone))
    again = load_folder(folder)
    assert torch.equal(again.model.get_input_embeddings().weight, backbone.model.get_input_embeddings().weight)


def test_folders_that_lack_something_are_refused(tmp_path):
    backbone = make_backbone()
    run = tmp_path / "run"
    folder = run / "checkpoint_1"
    save_model(folder, backbone.model, backbone.model.state_dict(), backbone.tokenizer, make_card(backbone))
    with pytest.raises(CheckpointError, match=r"config.json is missing.*checkpoint_1: name one"):
        load_folder(run)
    weights = load_file(folder / "model.safetensors")
    name = "transformer.h.0.ln_1.weight"
    save_file(
        {key: value for key, value in weights.items() if key != name}, folder / "model.safetensors", {"format": "pt"}
    )
    with pytest.raises(CheckpointError, match=r"is damaged: model\.safetensors has \d+ bytes, expected \d+"):
        load_folder(folder)
    (folder / "manifest.json").unlink()  # as in a folder that another program wrote
    with pytest.raises(CheckpointError, match=f"missing {name}"):
        load_folder(folder)
    (folder / "model.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError, match="cannot be loaded"):
        load_folder(folder)
    (folder / "model.safetensors").unlink()
    torch.save(weights, folder / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="cannot be loaded"):
        load_folder(folder)


def test_a_tokenizer_of_another_model_is_refused(tmp_path):
    backbone = make_backbone()
    many = build_word_tokenizer([" ".join(f"w{i}" for i in range(99))])
    path = tmp_path / "checkpoint_1"
    torch.save(backbone.model.state_dict(), path)
    with pytest.raises(CheckpointError, match=r"has embedding rows for \d+ tokens; expected \d+"):
        load_state_dict(path, settings_of(), many)
    with pytest.raises(ModelError, match=r"the tokenizer has \d+ tokens, the weights have rows for"):
        add_marker_rows(backbone.model, many)
    folder = tmp_path / "folder"
    other = replace(make_card(backbone), marker_ids={**make_card(backbone).marker_ids, "<|latent|>": 0})
    save_model(folder, backbone.model, backbone.model.state_dict(), backbone.tokenizer, other)
    with pytest.raises(CheckpointError, match="these files are not of one checkpoint"):
        load_folder(folder)


def test_a_failed_save_leaves_the_old_folder(tmp_path, monkeypatch):
    backbone = make_backbone()
    folder = tmp_path / "checkpoint_1"
    arguments = (folder, backbone.model, backbone.model.state_dict(), backbone.tokenizer, make_card(backbone))
    save_model(*arguments)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(type(backbone.tokenizer), "save_pretrained", full)
    with pytest.raises(CheckpointError, match=r"could not be written.*No space left.*untouched"):
        save_model(*arguments)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint_1"]


def test_a_checkpoint_that_cannot_be_replaced_stays(tmp_path, monkeypatch):
    """The second of two renames fails."""
    backbone = make_backbone()
    folder = tmp_path / "checkpoint_1"
    arguments = (folder, backbone.model, backbone.model.state_dict(), backbone.tokenizer, make_card(backbone))
    save_model(*arguments)
    rename = Path.rename

    def failing(self, target):
        if self.name.startswith(".checkpoint_1.") and ".old." not in self.name:
            raise OSError("busy")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises(CheckpointError, match="could not be written"):
        save_model(*arguments)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint_1"]
    assert load_folder(folder).markers == backbone.markers
