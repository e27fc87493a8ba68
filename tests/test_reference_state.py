"""State dicts of the reference implementation load with or without prefix and markers; wrong ones are refused."""

import pytest
import torch
from making import TEXTS, make_backbone, settings_of

from coconut_ds.data.tokens import MARKERS, add_markers, build_word_tokenizer
from coconut_ds.errors import CheckpointError
from coconut_ds.model.backbone import model_from_scratch
from coconut_ds.model.reference_state import load_state_dict


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
    """Unpickling it would run code."""

    def __reduce__(self):
        return (exec, ("raise SystemExit('code ran')",))


def test_a_pickle_with_code_is_refused_unread(tmp_path):
    path = tmp_path / "checkpoint_1"
    torch.save({"transformer.wte.weight": Evil()}, path)
    with pytest.raises(CheckpointError, match="cannot be read as a state dict"):
        load_state_dict(path, settings_of(), build_word_tokenizer(TEXTS))
