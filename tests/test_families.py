"""Model folders of many families, saved by the family's own class: they load, evaluate and serve, or are refused."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from serving import byte_tokenizer
from slow_loop import slow_generate, slow_loss
from tiny_models import SHAPES
from transformers import AutoConfig, AutoModelForCausalLM

from coconut_ds.errors import CoconutError, DataError
from coconut_ds.evaluation.session import evaluate
from coconut_ds.generation.prompter import Writing
from coconut_ds.methods.layout import IGNORE, Layout
from coconut_ds.model.checkpoint import load_folder
from coconut_ds.model.collate import collate
from coconut_ds.model.latent_loop import LatentLoop, latent_loss
from coconut_ds.model.support import context_length
from coconut_ds.reasoner import load_reasoner
from coconut_ds.settings import EvalConfig
from coconut_ds.settings.compose import compose_eval_config
from serve.launch import make_service
from serve.limits import EngineSettings, Limits
from serve.requests.asking import Ask

SMALL: dict[str, Any] = SHAPES["llama"]
EXPERTS = {"num_local_experts": 4, "num_experts": 4, "moe_intermediate_size": 16, "num_experts_per_tok": 2}
SUPPORTED: dict[str, dict[str, Any]] = {
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 96},
    "gpt_neox": {"tie_word_embeddings": False},
    "llama": {},
    "mistral": {"sliding_window": 48},
    "mixtral": {**EXPERTS, "sliding_window": None},
    "qwen2": {},
    "qwen3": {"head_dim": 8},
    "gemma": {"head_dim": 8},
    "gemma3_text": {"head_dim": 8, "sliding_window": 64},
    "phi": {},
    "phi3": {"sliding_window": 200},
    "olmo2": {},
    "olmo3": {"sliding_window": 64},
    "smollm3": {},
    "starcoder2": {"sliding_window": 64},
    "granite": {},
    "opt": {"ffn_dim": 48, "word_embed_proj_dim": 16},
    "nemotron": {"head_dim": 8},
}
"""Families that work, with the values of their configuration that differ from ``SMALL``."""
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "bloom": ({"n_layer": 2, "n_head": 4}, "do not accept an attention function"),
    "falcon": ({}, "do not accept an attention function"),
    "gpt_neo": ({"num_layers": 2, "num_heads": 4, "attention_types": [[["global", "local"], 1]]}, "attention function"),
    "stablelm": ({}, "do not accept an attention function"),
    "gemma2": ({"head_dim": 8}, r"transforms its logits \(final_logit_softcapping\)"),
    "cohere": ({}, r"transforms its logits \(logit_scale\)"),
    "bert": ({}, "its head is more than one matrix"),
    "diffllama": ({}, "do not each call an attention function once"),
    "mistral": ({"sliding_window": 4}, "some layers attend only to the last 4 positions"),
    "t5": ({"num_layers": 2}, "t5: transformers has no causal language model of this type"),
}
"""Families that are refused, with the reason."""
PROBLEMS = [{"question": "the 1 + 2", "steps": ["1"], "answer": "3"}, {"question": "4", "steps": [], "answer": "4"}]


def config_of(family: str, values: dict[str, Any]) -> Any:
    base = AutoConfig.for_model(family)
    small = {key: value for key, value in SMALL.items() if hasattr(base, key)} if "n_embd" not in values else {}
    tokens = {"vocab_size": len(byte_tokenizer()), "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": None}
    return AutoConfig.for_model(family, initializer_range=0.2, **{**small, **tokens, **values})


def save_as_others_do(folder: Path, family: str, values: dict[str, Any]) -> None:
    """Weights by the family's own class, and a tokenizer."""
    torch.manual_seed(0)
    config = config_of(family, values)
    if family == "t5":
        config.save_pretrained(folder)
        (folder / "model.safetensors").write_bytes((8).to_bytes(8, "little") + b"{}      ")
    else:
        AutoModelForCausalLM.from_config(config, attn_implementation="eager").save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)


@pytest.fixture(scope="module")
def evaluation(tmp_path_factory) -> EvalConfig:
    """The configuration of an evaluation on ``PROBLEMS``, of a checkpoint that is still to be set."""
    data = tmp_path_factory.mktemp("families") / "data.json"
    data.write_text(json.dumps(PROBLEMS))
    keys = ["checkpoint=x", f"data={data}", "method=coconut", "n_thoughts=2", "max_new_tokens=4"]
    return compose_eval_config(keys)


@pytest.mark.parametrize("family", SUPPORTED)
def test_a_folder_of_a_family_loads_evaluates_and_serves(family, tmp_path, monkeypatch, evaluation):
    """The text of evaluation and server is that of a slow loop around the model as transformers loads it."""
    monkeypatch.setattr("coconut_ds.evaluation.report.draw_sweep", lambda *arguments: None)
    save_as_others_do(tmp_path / "plain", family, SUPPORTED[family])
    places = {"checkpoint": str(tmp_path / "plain"), "out": str(tmp_path / "out")}
    scores = evaluate(evaluation.model_copy(update=places))[0]
    reasoner = load_reasoner(tmp_path / "plain", "coconut", 2)
    reasoner.save(tmp_path / "saved")
    service, _ = make_service([str(tmp_path / "saved")], EngineSettings(slots=2, max_positions=48), Limits())
    try:
        asked = Ask("saved", tuple(problem["question"] for problem in PROBLEMS), max_new_tokens=4)
        served = [one.text for one in service.answer_now(asked)]
    finally:
        service.close()
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "saved", attn_implementation="eager").eval()
    prompter = reasoner.prompter
    requests = [
        prompter.request(ids, reasoner.thoughts(), Writing(4))
        for ids in prompter.encode([problem["question"] for problem in PROBLEMS])
    ]
    slow = [prompter.text(slow_generate(model, request, 0)) for request in requests]
    assert [one.text for one in scores.predictions] == served == slow


@pytest.mark.parametrize("family", REFUSED)
def test_a_family_that_cannot_be_run_is_refused_with_the_reason(family, tmp_path):
    values, reason = REFUSED[family]
    save_as_others_do(tmp_path, family, values)
    with pytest.raises(CoconutError, match=reason) as refused:
        load_reasoner(tmp_path, "cot")
    assert "\n" not in str(refused.value)


def layout(question: list[int], text: list[int]) -> Layout:
    """Two thoughts between a question and a text with loss."""
    return Layout([*question, 1, 1, *text], [*[IGNORE] * (len(question) + 2), *text], len(question), 2)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("family", ["mistral", "gemma3_text"])
def test_a_window_has_no_effect_on_shorter_sequences_however_wide_the_batch(family, attention, tmp_path):
    """The batch has more columns than the window has positions, because its rows are padded differently."""
    save_as_others_do(tmp_path, family, {"sliding_window": 16, **({"head_dim": 8} if "gemma" in family else {})})
    model = load_folder(tmp_path, attention).model
    assert context_length(model) == 16
    rows = [layout(list(range(3, 15)), [5]), layout([7, 8], list(range(20, 31)))]
    inputs, targets = collate(rows, [0.5, 0.25], 2, 0)
    assert inputs.prefix_ids.shape[1] + 2 + inputs.rest_ids.shape[1] > 16
    loss = latent_loss(LatentLoop(model), inputs, targets)
    assert model.config.sliding_window == 16
    torch.testing.assert_close(loss, slow_loss(model, rows, [0.5, 0.25]), rtol=1e-5, atol=1e-5)


def test_layers_that_drop_keyword_arguments_are_trained_with_transformers_own_cache(tmp_path):
    save_as_others_do(tmp_path, "nemotron", {"head_dim": 8})
    model = load_folder(tmp_path).model
    rows = [layout([3, 4, 5, 6], [7, 8]), layout([9], [10])]
    loss = latent_loss(LatentLoop(model), *collate(rows, [0.5, 0.25], 2, 0))
    torch.testing.assert_close(loss, slow_loss(model, rows, [0.5, 0.25]), rtol=1e-5, atol=1e-5)


def test_a_window_counts_as_the_context_length(tmp_path):
    """A question that is longer than the window is refused, and a text ends where the window is full."""
    save_as_others_do(tmp_path, "mistral", {"sliding_window": 16})
    reasoner = load_reasoner(tmp_path, "coconut", 2)
    tokens = reasoner.generate("abcdef", max_new_tokens=99)[0].completion
    assert (tokens.finish_reason, len(tokens.tokens)) == ("length", 16 - 11)
    with pytest.raises(DataError, match=r"context is 16 \(its attention window"):
        reasoner.generate("abcdefghijklmn")
