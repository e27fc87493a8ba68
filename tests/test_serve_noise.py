"""Noise in thoughts that a request asks for: the whole app, in process."""

import json

import pytest
from mixed_load import events
from serving import save_checkpoint
from starlette.testclient import TestClient

from coconut_ds import load_reasoner
from coconut_ds.model.thought_noise import NoiseSettings
from coconut_ds.probing.cases import Sample
from coconut_ds.probing.trace import trace_thoughts
from serve.api.app import create_app
from serve.clients.access import Access
from serve.launch import make_service
from serve.limits import EngineSettings, Limits

PROMPTS = ["a question that is long enough to share", "hello"]
NOISE = {"thought_noise": "gaussian", "thought_sigma": 3.0}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return save_checkpoint(tmp_path_factory.mktemp("noise") / "tiny")


@pytest.fixture(scope="module")
def http(checkpoint):
    service, metrics = make_service([str(checkpoint)], EngineSettings(4), Limits())
    with TestClient(create_app(service, metrics, Access(None))) as one:
        yield one
    service.close()


def test_completions_have_the_noise_of_load_reasoner(checkpoint, http):
    """``n`` samples of each prompt, streamed and not; without any noise they are equal."""
    reasoner = load_reasoner(checkpoint)
    body = {"model": "tiny", "prompt": PROMPTS, "n": 3, "max_tokens": 8, "seed": 7}
    for noise in (NOISE, {"thought_noise": "dropout", "thought_dropout": 0.5}):
        theirs = [one.text for one in reasoner.generate(PROMPTS, max_new_tokens=8, seed=7, samples=3, **noise)]
        made = http.post("/v1/completions", json=body | noise).json()
        assert [choice["text"] for choice in made["choices"]] == theirs
        assert len(set(theirs)) > 2
        texts = dict.fromkeys(range(6), "")
        for event in events(http.post("/v1/completions", json=body | noise | {"stream": True}).content):
            for choice in event["choices"]:
                texts[choice["index"]] += choice["text"]
        assert list(texts.values()) == theirs
    assert made["usage"]["prompt_tokens_details"]["cached_tokens"] > 0, "samples share the question"
    none = http.post("/v1/completions", json=body | NOISE | {"thought_sigma": 0}).json()
    greedy = [one.text for one in reasoner.generate(PROMPTS, max_new_tokens=8) for _ in range(3)]
    assert [choice["text"] for choice in none["choices"]] == greedy
    del body["seed"]
    drawn = [http.post("/v1/completions", json={**body, **NOISE, "n": 8, "prompt": "hello"}).text for _ in range(2)]
    first, second = ([choice["text"] for choice in json.loads(one)["choices"]] for one in drawn)
    assert first != second, "without a seed every request draws anew"


def test_a_trace_is_that_of_the_first_sample(checkpoint, http):
    body = {"model": "tiny", "question": PROMPTS[0], "max_tokens": 8, "seed": 7, **NOISE}
    found = http.post("/v1/thoughts", json=body).json()
    sample = Sample(NoiseSettings("gaussian", 3.0), 7)
    (own,) = trace_thoughts(load_reasoner(checkpoint), PROMPTS[0], max_new_tokens=8, sample=sample)
    assert found["text"] == own.text
    assert [one["decoded"]["tokens"] for one in found["thoughts"]] == [one.decoded.tokens for one in own.thoughts]
