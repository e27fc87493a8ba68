"""Model folders and state dicts: identity on reload, markers once, wrong files refused whole."""

import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import SHAPES
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from coconut_ds.data.tokens import MARKERS, add_markers, build_word_tokenizer
from coconut_ds.distributed.ranks import alone
from coconut_ds.errors import CheckpointError, ModelError
from coconut_ds.files import SEAL, seal
from coconut_ds.model.backbone import add_marker_rows, build_backbone, model_from_scratch
from coconut_ds.model.card import ModelCard, marker_table
from coconut_ds.model.checkpoint import load_folder, save_model
from coconut_ds.model.reference_state import load_state_dict
from coconut_ds.settings import ModelConfig

TEXTS = ["1 + 2 = 3 << >>"]


def settings_of(family: str = "gpt2") -> ModelConfig:
    return ModelConfig(
        model_id=family, model_init="scratch", tokenizer="dataset", model_config_overrides=dict(SHAPES[family])
    )


def make_backbone(family: str = "gpt2", seed: int = 0):
    torch.manual_seed(seed)
    return build_backbone(settings_of(family), build_word_tokenizer(TEXTS))


def make_card(backbone) -> ModelCard:
    return ModelCard("coconut", 3, 6, 2, 3, marker_table(backbone.markers), provenance={"epoch": 4})


@pytest.mark.parametrize("family", list(SHAPES))
def test_a_folder_loads_back_identically_here_and_with_transformers_alone(tmp_path, family):
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


def test_missing_marker_rows_start_from_the_seed_token_and_nothing_else_moves():
    """Source rows are untouched; input row and untied output row both start from the row of `<<`."""
    tokenizer = build_word_tokenizer(TEXTS)
    rows = len(tokenizer)
    torch.manual_seed(0)
    model = model_from_scratch(settings_of("llama"), tokenizer, rows)
    source = {name: value.clone() for name, value in model.state_dict().items()}
    backbone = add_marker_rows(model, tokenizer)
    seed = tokenizer.get_vocab()["<<"]
    for name, value in backbone.model.state_dict().items():
        if value.shape[0] == rows + 3:
            assert torch.equal(value[:rows], source[name])
            assert torch.equal(value[rows:], source[name][seed].expand(3, -1))
        else:
            assert torch.equal(value, source[name])
    assert backbone.markers.all() == (rows, rows + 1, rows + 2)


def test_without_a_seed_token_markers_start_from_the_mean():
    tokenizer = build_word_tokenizer(["a b c"])
    rows = len(tokenizer)
    model = model_from_scratch(settings_of(), tokenizer, rows)
    mean = model.get_input_embeddings().weight.detach().mean(dim=0)
    weight = add_marker_rows(model, tokenizer).model.get_input_embeddings().weight
    torch.testing.assert_close(weight[rows:].detach(), mean.expand(3, -1))


def test_marker_rows_that_are_there_are_never_touched(tmp_path):
    backbone = make_backbone()
    with torch.no_grad():
        backbone.model.get_input_embeddings().weight[list(backbone.markers.all())] = 7.0
    folder = tmp_path / "one"
    save_model(folder, backbone.model, backbone.model.state_dict(), backbone.tokenizer, make_card(backbone))
    again = load_folder(folder)
    assert torch.equal(again.model.get_input_embeddings().weight, backbone.model.get_input_embeddings().weight)


@pytest.mark.parametrize("prefix", ["", "base_causallm."])
@pytest.mark.parametrize("with_markers", [True, False])
def test_reference_state_dicts_load_with_and_without_prefix_and_markers(tmp_path, prefix, with_markers):
    tokenizer = build_word_tokenizer(TEXTS)
    if with_markers:
        add_markers(tokenizer)
    torch.manual_seed(3)
    source = model_from_scratch(settings_of(), tokenizer, len(tokenizer)).state_dict()
    saved = {prefix + name: value for name, value in source.items()}
    if prefix:
        saved["embedding.weight"] = source["transformer.wte.weight"]
        saved[prefix + "transformer.h.0.attn.bias"] = torch.ones(1, 1, 8, 8, dtype=torch.bool)
    path = tmp_path / "checkpoint_3"
    torch.save(saved, path)
    backbone = load_state_dict(path, settings_of(), build_word_tokenizer(TEXTS))
    rows = source["transformer.wte.weight"].shape[0]
    for name, value in backbone.model.state_dict().items():
        assert torch.equal(value[: len(source[name])], source[name]), name
    assert len(backbone.model.get_input_embeddings().weight) == max(rows, len(backbone.tokenizer))
    assert [backbone.tokenizer.get_vocab()[name] for name in MARKERS] == list(backbone.markers.all())


def break_state(name: str, state: dict) -> object:
    if name == "missing":
        del state["transformer.h.1.mlp.c_fc.weight"]
    elif name == "unexpected":
        state["transformer.h.9.mlp.c_fc.weight"] = torch.zeros(2)
    elif name == "shape":
        state["transformer.wpe.weight"] = torch.zeros(3, 32)
    elif name == "no embedding":
        return {"some.weight": torch.zeros(2)}
    elif name == "no state dict":
        return [1, 2]
    return state


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("missing", "missing transformer.h.1.mlp.c_fc.weight"),
        ("unexpected", "unexpected transformer.h.9.mlp.c_fc.weight"),
        ("shape", "of another shape transformer.wpe.weight"),
        ("no embedding", "no input embedding found"),
        ("no state dict", "contains list, expected a state dict"),
    ],
)
def test_a_state_dict_of_another_model_is_refused_whole(tmp_path, fault, words):
    path = tmp_path / "checkpoint_1"
    torch.save(break_state(fault, make_backbone().model.state_dict()), path)
    with pytest.raises(CheckpointError, match=words):
        load_state_dict(path, settings_of(), build_word_tokenizer(TEXTS))


def test_a_file_that_is_no_state_dict_at_all_is_refused(tmp_path):
    path = tmp_path / "checkpoint_1"
    path.write_text("not a pickle")
    with pytest.raises(CheckpointError, match="cannot be read as a state dict"):
        load_state_dict(path, settings_of(), build_word_tokenizer(TEXTS))


class Evil:
    """Its unpickling would run code."""

    def __reduce__(self):
        return (exec, ("raise SystemExit('code ran')",))


def test_a_pickle_with_code_is_refused_unread(tmp_path):
    path = tmp_path / "checkpoint_1"
    torch.save({"transformer.wte.weight": Evil()}, path)
    with pytest.raises(CheckpointError, match="cannot be read as a state dict"):
        load_state_dict(path, settings_of(), build_word_tokenizer(TEXTS))


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
    (folder / "manifest.json").unlink()  # as in a folder that somebody else wrote
    with pytest.raises(CheckpointError, match=f"missing {name}"):
        load_folder(folder)
    (folder / "model.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError, match="cannot be loaded"):
        load_folder(folder)
    (folder / "model.safetensors").unlink()
    torch.save(weights, folder / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="cannot be loaded"):
        load_folder(folder)


def test_a_card_that_is_broken_or_of_another_method_is_refused(tmp_path):
    card = tmp_path / "coconut.json"
    assert ModelCard.read(tmp_path) is None
    card.write_text("{")
    with pytest.raises(CheckpointError, match=r"is not a valid coconut\.json"):
        ModelCard.read(tmp_path)
    values = json.loads('{"stage":0,"num_thoughts":0,"c_thought":1,"max_latent_stage":1,"marker_ids":{}}')
    card.write_text(json.dumps({**values, "method": "telepathy"}))
    with pytest.raises(CheckpointError, match="unknown method 'telepathy'"):
        ModelCard.read(tmp_path)


def test_architectures_that_cannot_be_are_refused():
    with pytest.raises(ModelError, match="GPT2Config has no key n_layers"):
        build_backbone(
            settings_of().model_copy(update={"model_config_overrides": {"n_layers": 2}}), build_word_tokenizer(TEXTS)
        )
    with pytest.raises(ModelError, match="no such model type"):
        build_backbone(ModelConfig(model_id="gtp2", model_init="scratch"), build_word_tokenizer(TEXTS))
    with pytest.raises(ModelError, match="hub cannot be reached"):
        build_backbone(ModelConfig(model_id="openai-community/gpt2-none"), build_word_tokenizer(TEXTS))


@pytest.mark.parametrize(
    ("family", "values"),
    [
        ("mistral", {"sliding_window": 4}),
        ("gpt_neo", {"attention_types": [[["global", "local"], 1]], "window_size": 4, "num_layers": 2}),
        ("gemma3_text", {"sliding_window": 4, "layer_types": ["sliding_attention", "full_attention"]}),
    ],
)
def test_models_whose_layers_see_a_window_are_refused(family, values):
    """Pads between prefix and steps would use the window up, row by row differently."""
    common = {} if family == "gpt_neo" else {"num_hidden_layers": 2, "intermediate_size": 32, "head_dim": 8}
    heads = {"num_heads": 2} if family == "gpt_neo" else {"num_attention_heads": 2, "num_key_value_heads": 2}
    overrides = {"hidden_size": 16, "max_position_embeddings": 64, **common, **heads, **values}
    eager = {"model_id": family, "model_init": "scratch", "attn_implementation": "eager"}
    settings = ModelConfig(**eager, model_config_overrides=overrides)
    with pytest.raises(ModelError, match="some layers attend only to the last"):
        build_backbone(settings, build_word_tokenizer(TEXTS))


def test_pretrained_weights_load_whole_or_not_at_all(tmp_path):
    backbone = make_backbone()
    backbone.model.save_pretrained(tmp_path)
    settings = ModelConfig(model_id=str(tmp_path), tokenizer="x")
    assert build_backbone(settings, backbone.tokenizer).markers == backbone.markers
    weights = load_file(tmp_path / "model.safetensors")
    del weights["transformer.h.1.ln_2.bias"]
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointError, match=r"missing transformer\.h\.1\.ln_2\.bias"):
        build_backbone(settings, backbone.tokenizer)


def test_a_tokenizer_of_another_model_is_refused(tmp_path):
    backbone = make_backbone()
    many = build_word_tokenizer([" ".join(f"w{i}" for i in range(99))])
    path = tmp_path / "checkpoint_1"
    torch.save(backbone.model.state_dict(), path)
    with pytest.raises(
        CheckpointError, match=r"has embedding rows for \d+ tokens; expected \d+, as many as the tokenizer has"
    ):
        load_state_dict(path, settings_of(), many)
    with pytest.raises(ModelError, match=r"the tokenizer has \d+ tokens, the weights have rows for"):
        add_marker_rows(backbone.model, many)
    folder = tmp_path / "folder"
    other = replace(make_card(backbone), marker_ids={**make_card(backbone).marker_ids, "<|latent|>": 0})
    save_model(folder, backbone.model, backbone.model.state_dict(), backbone.tokenizer, other)
    with pytest.raises(CheckpointError, match="these files are not of one checkpoint"):
        load_folder(folder)


def test_a_save_that_fails_leaves_what_was_there(tmp_path, monkeypatch):
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


def test_without_an_accelerator_the_processor_is_used(monkeypatch):
    """torch names the accelerator it was built for even where there is none."""
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("cuda"))
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    assert alone().device.type == "cpu"
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    assert alone().device.type == "cuda"


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
