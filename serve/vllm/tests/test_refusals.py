"""What would give wrong answers is refused: settings at start, requests with vLLM's error, which is status 400."""

import json
import shutil

import pytest
import tiny
from conftest import REFERENCE, options, sampling, split
from vllm import LLM, SamplingParams
from vllm.engine.arg_utils import EngineArgs
from vllm.exceptions import VLLMValidationError
from vllm.lora.request import LoRARequest
from vllm.model_executor.models.config import MODELS_CONFIG_MAP
from vllm.sampling_params import BeamSearchParams, StructuredOutputsParams

from coconut_vllm import hooks, limits, recognition
from coconut_vllm.card import read_card
from coconut_vllm.errors import NotSupported

IDS = tiny.tokenizer().get_vocab()
THOUGHT, START = IDS["<|latent|>"], IDS["<|start-latent|>"]
QUESTION, RIGHT = tiny.asked("gpt2")[4][0], REFERENCE["gpt2"]["answers"][4]


@pytest.fixture(scope="module")
def shared(checkpoint):
    """One engine for all refused requests: none of them may end it."""
    llm = LLM(str(checkpoint("gpt2")), **options())
    yield llm
    llm.llm_engine.engine_core.shutdown()


def still_answers(llm):
    """Whether the engine gives the right answer to a right request."""
    output = llm.generate(QUESTION, sampling({"n_thoughts": 4}), use_tqdm=False)[0]
    return split(output, IDS) == (RIGHT["tokens"], RIGHT["thoughts"])


PARAMETERS = {
    "n_thoughts is '4'": {"extra_args": {"n_thoughts": "4"}},
    "n_thoughts is True": {"extra_args": {"n_thoughts": True}},
    "n_thoughts is -1": {"extra_args": {"n_thoughts": -1}},
    "n_thoughts is 1.5": {"extra_args": {"n_thoughts": 1.5}},
    "room for 8": {"extra_args": {"n_thoughts": 9}},
    "n_thought: unknown": {"extra_args": {"n_thought": 4}},
    "coconut_plan: unknown": {"extra_args": {"coconut_plan": []}},
    "kv_transfer_params: unknown": {"extra_args": {"kv_transfer_params": {"do_remote_decode": True}}},
    "expected at most 4": {"extra_args": {"min_thoughts": 5}},
    "min_tokens is 2": {"extra_args": {"max_thoughts": 4}, "min_tokens": 2},
    "structured_outputs": {"structured_outputs": StructuredOutputsParams(json='{"type": "object"}')},
    "stop_token_ids": {"stop_token_ids": [THOUGHT]},
    "logit_bias": {"logit_bias": {THOUGHT: 5.0}},
    "allowed_token_ids": {"allowed_token_ids": [5, START]},
    "prompt_logprobs": {"prompt_logprobs": 1},
    "presence_penalty": {"presence_penalty": 0.5},
    "min_p": {"min_p": 0.5, "temperature": 1.0},
}


@pytest.mark.parametrize("message", PARAMETERS)
def test_parameters_that_would_be_wrong_are_refused(shared, message):
    """The last three would be served with a GPU: they need kernels that have no stand-in."""
    with pytest.raises(VLLMValidationError, match=message):
        shared.generate(QUESTION, SamplingParams(**({"temperature": 0, "max_tokens": 4} | PARAMETERS[message])))
    assert still_answers(shared)


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ({"prompt_token_ids": [5, START, 6]}, "holds markers"),
        (f"{QUESTION} <|latent|>", "holds markers"),
        ({"prompt_token_ids": [5, 6], "prompt": "another text"}, "not those of the whole text"),
        ({"prompt_token_ids": [5] * 125}, "more for thoughts"),
    ],
)
def test_prompts_that_would_be_wrong_are_refused(shared, prompt, message):
    with pytest.raises(VLLMValidationError, match=message):
        shared.generate(prompt, sampling({}), use_tqdm=False)
    assert still_answers(shared)


def test_other_kinds_of_requests_are_refused(shared):
    """Beam search, adapters, priorities, prepared requests, truncation."""
    with pytest.raises(VLLMValidationError, match="beam search"):
        shared.beam_search([{"prompt": QUESTION}], BeamSearchParams(beam_width=2, max_tokens=4))
    engine = shared.llm_engine
    with pytest.raises(VLLMValidationError, match="priority"):
        engine.add_request("a", {"prompt": QUESTION}, sampling({}), priority=1)
    with pytest.raises(VLLMValidationError, match="lora"):
        engine.add_request("b", {"prompt": QUESTION}, sampling({}), lora_request=LoRARequest("x", 1, "/nowhere"))
    with pytest.raises(VLLMValidationError, match="not those of the whole text"):
        engine.add_request("c", QUESTION, sampling({}), tokenization_kwargs={"truncate_prompt_tokens": 5})
    prepared = engine.input_processor.process_inputs("d", QUESTION, sampling({}), ("generate",))
    prepared.sampling_params.extra_args = None
    with pytest.raises(VLLMValidationError, match="prepared"):
        engine.add_request("d", prepared, sampling({}))
    assert still_answers(shared)


SETTINGS = {
    "pipeline parallelism": {"pipeline_parallel_size": 2},
    "data parallelism": {"data_parallel_size": 2},
    "speculative decoding": {"speculative_config": {"method": "ngram", "num_speculative_tokens": 2}},
    "LoRA": {"enable_lora": True},
    "priority scheduling": {"scheduling_policy": "priority"},
    "connectors": {"kv_transfer_config": {"kv_connector": "ExampleConnector", "kv_role": "kv_both"}},
    "embeddings as prompts": {"enable_prompt_embeds": True},
    # vLLM's own message, since the plugin's architectures exist only in the plugin.
    "Cannot find model module": {"model_impl": "transformers"},
    "max_thoughts is 3": {"additional_config": {"coconut": {"max_thoughts": 3}}},
    "max_thoughts is 'many'": {"additional_config": {"coconut": {"max_thoughts": "many"}}},
    "coconut is": {"additional_config": {"coconut": {"most": 3}}},
}


@pytest.mark.parametrize("message", SETTINGS)
def test_settings_that_would_be_wrong_are_refused_at_start(checkpoint, message):
    with pytest.raises(Exception, match=message):
        EngineArgs(str(checkpoint("gpt2")), **options(**SETTINGS[message])).create_engine_config()


def test_the_other_model_runner_is_refused_by_configuration_and_model(checkpoint, monkeypatch):
    """Even without the check of the configuration, and without that of the model, nothing is served."""
    # vLLM reads the variable once in each process.
    monkeypatch.setattr("vllm.envs.VLLM_USE_V2_MODEL_RUNNER", False, raising=False)
    with pytest.raises(Exception, match="Model Runner V1"):
        EngineArgs(str(checkpoint("gpt2")), **options()).create_engine_config()
    for name in recognition.ARCHITECTURES.values():
        monkeypatch.delitem(MODELS_CONFIG_MAP, name)
    with pytest.raises(NotSupported, match="Model Runner V1"):
        LLM(str(checkpoint("gpt2")), **options())
    monkeypatch.setattr("coconut_vllm.models.check_engine", lambda _: None)
    with pytest.raises(NotSupported, match="would not think"):
        LLM(str(checkpoint("gpt2")), **options()).generate(QUESTION, sampling({}))


def test_a_checkpoint_that_thinks_is_not_loaded_as_an_ordinary_model(checkpoint):
    overrides = {"architectures": ["GPT2LMHeadModel"]}
    with pytest.raises(NotSupported, match="would not think"):
        LLM(str(checkpoint("gpt2")), **options(hf_overrides=overrides))


CARDS = {
    "unknown method \\['cot'\\]": {"method": ["cot"]},
    "does not know: shape": {"shape": 1},
    "iterations is 3": {"iterations": 3},
    "looped is True": {"looped": True},
    "format is 'symbolic'": {"format": "symbolic"},
    "chat_template is True": {"chat_template": True},
    "unknown method 'telepathy'": {"method": "telepathy"},
    "num_thoughts is '4'": {"num_thoughts": "4"},
    "num_thoughts is 65537": {"num_thoughts": 65537},
    "stage is True": {"stage": True},
    "marker_ids is": {"marker_ids": {"<|latent|>": 3}},
    "expected different integers": {"marker_ids": dict.fromkeys((*tiny.MARKERS, tiny.PAUSE), 3)},
    "feed is": {"feed": {"kind": "magic", "width": 3}},
}


@pytest.mark.parametrize("message", CARDS)
def test_cards_that_are_not_understood_are_refused(checkpoint, tmp_path, message):
    content = json.loads((checkpoint("gpt2") / "coconut.json").read_text())
    path = tmp_path / "coconut.json"
    path.write_text(json.dumps(content | CARDS[message]))
    with pytest.raises(NotSupported, match=message):
        read_card(path)


def test_markers_without_embeddings_stop_the_start(checkpoint, tmp_path):
    place = shutil.copytree(checkpoint("gpt2"), tmp_path / "copy")
    content = json.loads((place / "coconut.json").read_text())
    content["marker_ids"]["<|latent|>"] = 100_000
    (place / "coconut.json").write_text(json.dumps(content))
    with pytest.raises(Exception, match="names marker 100000"):
        EngineArgs(str(place), **options()).create_engine_config()


def test_a_refused_card_or_architecture_stops_the_start(checkpoint, tmp_path):
    """Through vLLM's own configuration, not only the reader."""
    place = shutil.copytree(checkpoint("gpt2"), tmp_path / "copy")
    content = json.loads((place / "coconut.json").read_text())
    (place / "coconut.json").write_text(json.dumps(content | {"shape": 1}))
    with pytest.raises(Exception, match="does not know: shape"):
        EngineArgs(str(place), **options()).create_engine_config()
    (place / "coconut.json").write_text(json.dumps(content))
    config = json.loads((place / "config.json").read_text())
    (place / "config.json").write_text(json.dumps(config | {"architectures": ["OPTForCausalLM"]}))
    with pytest.raises(Exception, match="this plugin serves"):
        EngineArgs(str(place), **options()).create_engine_config()


@pytest.mark.parametrize("change", ["missing", "unnamed", "misshapen"])
def test_a_feed_that_is_not_of_the_checkpoint_is_refused(checkpoint, tmp_path, change):
    place = shutil.copytree(checkpoint("codi"), tmp_path / "copy")
    content = json.loads((place / "coconut.json").read_text())
    if change == "missing":
        (place / "latent" / "feed.safetensors").unlink()
    elif change == "unnamed":
        (place / "coconut.json").write_text(json.dumps({**content, "feed": None}))
    else:
        (place / "coconut.json").write_text(json.dumps({**content, "feed": {"kind": "projection", "width": 5}}))
    with pytest.raises(NotSupported, match=r"not of one checkpoint|of the shapes"):
        LLM(str(place), **options())


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("vllm.v1.worker.gpu.sample.sampler:Sampler.sample", "self hidden_states"),
        ("vllm.v1.worker.gpu.sample.sampler:Sampler.gone", "self"),
        ("vllm.v1.worker.gpu.sample.sampler:__name__", "self"),
        ("vllm.gone:Sampler", "self"),
    ],
)
def test_a_vllm_with_another_hook_is_refused_with_the_versions_that_work(checkpoint, monkeypatch, name, expected):
    monkeypatch.setitem(hooks.FUNCTIONS, name, expected)
    hooks.fault.cache_clear()
    try:
        with pytest.raises(Exception, match=f"(?s){name}.*0.32.0"):
            EngineArgs(str(checkpoint("gpt2")), **options()).create_engine_config()
    finally:
        monkeypatch.undo()
        hooks.fault.cache_clear()
    assert hooks.fault() is None


def test_models_without_a_card_are_served_as_without_the_plugin(checkpoint, tmp_path):
    place = shutil.copytree(checkpoint("gpt2"), tmp_path / "plain")
    (place / "coconut.json").unlink()
    llm = LLM(str(place), **options(additional_config={}))
    assert llm.llm_engine.model_config.architectures == ["GPT2LMHeadModel"]
    output = llm.generate(QUESTION, SamplingParams(temperature=0, max_tokens=5), use_tqdm=False)[0]
    assert len(output.outputs[0].token_ids) > 0
    assert START not in output.prompt_token_ids
    llm.llm_engine.engine_core.shutdown()
    assert limits.faults(llm.llm_engine.vllm_config) == []
