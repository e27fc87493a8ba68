"""Marker rows are added once, pretrained weights load completely, and unsupported architectures are refused."""

import pytest
import torch
from making import TEXTS, make_backbone, settings_of
from safetensors.torch import load_file, save_file

from coconut_ds.data.tokens import build_word_tokenizer
from coconut_ds.errors import CheckpointError, ModelError
from coconut_ds.model.attention import check_attention_used
from coconut_ds.model.backbone import add_marker_rows, build_backbone, model_from_scratch
from coconut_ds.settings import ModelConfig


def test_missing_marker_rows_start_from_the_seed_token_and_nothing_else_moves():
    """Existing rows stay as they are; the new rows of the input and of an untied output start as the row of `<<`."""
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


def test_impossible_architectures_are_refused():
    with pytest.raises(ModelError, match="GPT2Config has no key n_layers"):
        build_backbone(
            settings_of().model_copy(update={"model_config_overrides": {"n_layers": 2}}), build_word_tokenizer(TEXTS)
        )
    with pytest.raises(ModelError, match=r"no key n_embd, n_layer.*model\.model_config_overrides=\{\} before"):
        build_backbone(settings_of().model_copy(update={"model_id": "llama"}), build_word_tokenizer(TEXTS))
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
    """Pads between prefix and steps would use up the window, by a different amount in each row."""
    common = {} if family == "gpt_neo" else {"num_hidden_layers": 2, "intermediate_size": 32, "head_dim": 8}
    heads = {"num_heads": 2} if family == "gpt_neo" else {"num_attention_heads": 2, "num_key_value_heads": 2}
    overrides = {"hidden_size": 16, "max_position_embeddings": 64, **common, **heads, **values}
    eager = {"model_id": family, "model_init": "scratch", "attn_implementation": "eager"}
    settings = ModelConfig(**eager, model_config_overrides=overrides)
    with pytest.raises(ModelError, match="some layers attend only to the last"):
        build_backbone(settings, build_word_tokenizer(TEXTS))


def test_another_attention_kernel_than_the_requested_one_is_refused():
    """transformers falls back to others for some kernels and models."""
    model = make_backbone().model
    check_attention_used(model, "sdpa")
    with pytest.raises(ModelError, match=r"attn_implementation=eager: transformers uses sdpa for GPT2LMHeadModel"):
        check_attention_used(model, "eager")


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
