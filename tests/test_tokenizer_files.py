"""Tokenizers come back from their files as they were, beside a model of any type; unusable ones are refused."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from making import make_backbone, make_card
from tiny_models import SHAPES
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as CAUSAL
from transformers.models.auto.tokenization_auto import MODELS_WITH_INCORRECT_HUB_TOKENIZER_CLASS as REPLACING

from coconut_ds import load_reasoner
from coconut_ds.data.encoding import encode, encoding_difference, encoding_fault
from coconut_ds.data.tokenizer_files import check_saving, read_tokenizer, write_tokenizer
from coconut_ds.data.tokens import add_markers, build_word_tokenizer, load_tokenizer
from coconut_ds.errors import CheckpointError, CoconutError, ModelError
from coconut_ds.model.backbone import add_marker_rows, build_backbone
from coconut_ds.model.checkpoint import load_folder, save_model, write_model
from coconut_ds.settings import ModelConfig

TEXT = "Tom is a bompus. 3 + 5 = 12345, it's\n### 8"
FAMILIES = ("gpt2", "llama", "mistral", "qwen2", "qwen3", "gpt_neox", "opt", "phi3", "gemma", "falcon", "olmo", "bloom")


def word_level() -> PreTrainedTokenizerBase:
    return build_word_tokenizer([TEXT])


def byte_level(folder: Path, name: str) -> PreTrainedTokenizerBase:
    """A small byte-level BPE as the class ``name`` loads it, with that class's own rules for digits and letters."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer, core.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = ["<|endoftext|>"]
    core.train_from_iterator(
        [TEXT] * 3, trainers.BpeTrainer(vocab_size=300, special_tokens=special, initial_alphabet=alphabet)
    )
    PreTrainedTokenizerFast(tokenizer_object=core, eos_token=special[0], unk_token=special[0]).save_pretrained(folder)
    put(folder / "tokenizer_config.json", tokenizer_class=name)
    put(folder / "config.json", model_type={"GPT2Tokenizer": "gpt2", "Qwen2Tokenizer": "qwen2"}[name])
    return AutoTokenizer.from_pretrained(folder)


def put(path: Path, **values: Any) -> None:
    """Sets keys of a JSON file."""
    there = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({**there, **values}))


@pytest.mark.parametrize("kind", ["words", "GPT2Tokenizer", "Qwen2Tokenizer"])
def test_a_tokenizer_comes_back_beside_a_model_of_any_type(tmp_path, kind):
    """Also from folders that were written before tokenizers were checked, if their class does not matter."""
    tokenizer = word_level() if kind == "words" else byte_level(tmp_path / "source", kind)
    add_markers(tokenizer)
    for family in sorted({*FAMILIES, *(REPLACING & CAUSAL.keys())}):
        put(tmp_path / "config.json", model_type=family)
        tokenizer.save_pretrained(tmp_path)
        before = json.loads((tmp_path / "tokenizer_config.json").read_text())
        assert encoding_difference(tokenizer, read_tokenizer(tmp_path, local_files_only=True)) is None, family
        write_tokenizer(tokenizer, tmp_path)
        assert encoding_difference(tokenizer, load_tokenizer(str(tmp_path))) is None, family
        if type(AutoTokenizer.from_pretrained(tmp_path)) is type(tokenizer):
            assert json.loads((tmp_path / "tokenizer_config.json").read_text()) == before, "written as before"


@pytest.mark.parametrize("family", ["qwen2", "llama", "gpt2"])
def test_a_saved_checkpoint_reads_questions_as_the_run_did(tmp_path, family):
    shape = dict(SHAPES.get(family, SHAPES["llama"]))
    settings = ModelConfig(model_id=family, model_init="scratch", model_config_overrides=shape)
    backbone = build_backbone(settings, word_level())
    save_model(tmp_path / "one", backbone.model, backbone.model.state_dict(), backbone.tokenizer, make_card(backbone))
    reasoner = load_reasoner(tmp_path / "one")
    assert reasoner.prompter.encode([TEXT]) == encode(backbone.tokenizer, [f"{TEXT}\n"])
    reasoner.save(tmp_path / "two")
    assert encoding_difference(backbone.tokenizer, load_folder(tmp_path / "two").tokenizer) is None


@pytest.mark.parametrize("family", FAMILIES)
def test_a_folder_without_a_tokenizer_is_refused_by_name(tmp_path, family):
    """transformers returns an empty tokenizer for some of these families."""
    backbone = make_backbone()
    write_model(tmp_path, backbone.model, backbone.model.state_dict(), backbone.tokenizer, make_card(backbone))
    for path in tmp_path.glob("*token*"):
        path.unlink()
    put(tmp_path / "config.json", model_type=family)
    with pytest.raises(
        CheckpointError, match=f"{tmp_path}: its tokenizer cannot be loaded: there is no tokenizer in it.*copy the"
    ):
        load_folder(tmp_path)
    with pytest.raises(ModelError, match=f"model.tokenizer={tmp_path}: this folder.*no tokenizer in it.*set model.tok"):
        load_tokenizer(str(tmp_path))
    # What is left of a tokenizer in some incomplete copies.
    put(tmp_path / "tokenizer_config.json", eos_token="</s>", tokenizer_class="Qwen2Tokenizer")
    with pytest.raises(
        CoconutError, match=rf"{tmp_path}: its tokenizer (is empty: all|cannot be loaded: Couldn't inst)"
    ):
        load_folder(tmp_path)


def test_a_tokenizer_that_loses_text_is_refused(tmp_path):
    """Words as the vocabulary of a byte-level tokenizer: all letters are unknown to it."""
    words = word_level().get_vocab()
    core = Tokenizer(models.BPE(words, []))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    lossy = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<|endoftext|>")
    assert encoding_fault(word_level()) is None
    lossy.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"turns \d+ of \d+ texts of its own vocabulary into no or unknown tokens"):
        load_tokenizer(str(tmp_path))


def test_a_tokenizer_of_a_far_smaller_model_is_refused():
    model = make_backbone().model
    model.resize_token_embeddings(2 * len(word_level()) + 10)
    with pytest.raises(
        ModelError, match=r"the tokenizer has \d+ tokens, the weights have rows for \d+, so they do not"
    ):
        add_marker_rows(model, word_level())


def test_a_tokenizer_that_cannot_be_saved_is_refused_before_training(monkeypatch):
    class Forgetful(PreTrainedTokenizerFast):
        """Loses a word whenever it is saved."""

        def save_pretrained(self, folder: str | Path, **options: object) -> tuple[str, ...]:
            return build_word_tokenizer(["Tom is"]).save_pretrained(folder, **options)

    core = word_level().backend_tokenizer
    tokenizer = Forgetful(tokenizer_object=core, eos_token="<|endoftext|>")
    config = make_backbone().model.config
    with pytest.raises(ModelError, match=r"is another one after it is saved and loaded again \(\d+ tokens instead of"):
        check_saving(tokenizer, config)
    check_saving(word_level(), config)


def test_a_special_token_without_a_row_gets_one_that_is_never_chosen(tmp_path):
    """``[PAD]``, as tokenizers get it that were used for training elsewhere; other tokens without a row are refused."""
    whole = make_backbone("llama", seed=4)
    plain = build_word_tokenizer(["1 + 2 = 3 << >>"])
    whole.model.resize_token_embeddings(len(plain))
    plain.add_special_tokens({"pad_token": "[PAD]"})
    whole.model.save_pretrained(tmp_path)
    plain.save_pretrained(tmp_path)
    reasoner = load_reasoner(tmp_path, "coconut", 2)
    tokenizer, rows = reasoner.backbone.tokenizer, reasoner.backbone.model.get_input_embeddings().weight
    assert tokenizer.convert_tokens_to_ids("[PAD]") == plain.pad_token_id == len(plain) - 1
    assert reasoner.backbone.markers.start == len(plain)
    torch.testing.assert_close(rows[plain.pad_token_id], rows[: plain.pad_token_id].mean(dim=0))
    assert reasoner.backbone.notes == ["the weights had no embedding row for [PAD]; it gets the mean of all rows"]
    answers = reasoner.generate(["1 + 2", "3"], max_new_tokens=20)
    assert all(plain.pad_token_id not in one.completion.tokens for one in answers)
    settings = ModelConfig(model_id=str(tmp_path))
    assert build_backbone(settings, load_tokenizer(str(tmp_path))).without_rows == ("[PAD]",)
    plain.add_tokens(["word"])
    with pytest.raises(ModelError, match="use the tokenizer that the weights were trained with"):
        add_marker_rows(whole.model, plain)


def test_a_generation_config_that_cannot_be_read_is_not_ignored(tmp_path):
    backbone = make_backbone()
    write_model(tmp_path, backbone.model, backbone.model.state_dict(), backbone.tokenizer, make_card(backbone))
    path = tmp_path / "generation_config.json"
    for text, match in (
        ("{", "cannot be read"),
        ("[]", "contains list"),
        ('{"eos_token_id": "</s>"}', "expected a token"),
    ):
        path.write_text(text)
        with pytest.raises(CheckpointError, match=match):
            load_folder(tmp_path)
        with pytest.raises(CheckpointError, match=match):
            build_backbone(ModelConfig(model_id=str(tmp_path)), backbone.tokenizer)
    path.unlink()
    load_folder(tmp_path)
