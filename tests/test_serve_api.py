"""A real server process, asked by ``openai``'s client, ``httpx`` and ``curl``: each route, streamed and not."""

import json
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import openai
import pytest
from mixed_load import events
from serving import save_checkpoint, serving

from coconut_ds import load_reasoner
from coconut_ds.data.tokens import MARKERS
from coconut_ds.probing.trace import trace_thoughts

pytestmark = pytest.mark.slow
KEY = "sesame"
PROMPTS = ["hello", "é€😀 the cat"]
FOLDERS = ("coconut", "coconut_reversed", "cot")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("api")
    for number, method in enumerate(FOLDERS):
        save_checkpoint(place / method, method, seed=number)
    return place


@pytest.fixture(scope="module")
def server(folder):
    options = ("--slots", "4", "--load", "--body-bytes", "100000", "--max-waiting", "32")
    with serving(*(folder / name for name in FOLDERS), key=KEY, options=options) as running:
        yield running


@pytest.fixture(scope="module")
def client(server):
    with openai.OpenAI(base_url=server.url + "/v1", api_key=KEY, max_retries=0, timeout=120) as one:
        yield one


@pytest.fixture(scope="module")
def http(server):
    with server.client() as one:
        yield one


@pytest.fixture(scope="module")
def reasoners(folder):
    return {name: load_reasoner(folder / name) for name in FOLDERS}


def streamed(chunks) -> dict[int, str]:
    texts: dict[int, str] = {}
    for chunk in chunks:
        for choice in chunk.choices:
            text = choice.text if hasattr(choice, "text") else choice.delta.content or ""
            texts[choice.index] = texts.get(choice.index, "") + text
    return texts


@pytest.mark.parametrize("name", FOLDERS)
def test_completions_are_the_reasoners_own_streamed_and_not(client, reasoners, name):
    """Several prompts and samples; usage counts thoughts; texts end before stop strings and contain no marker."""
    options = {"max_tokens": 14, "temperature": 1.0, "seed": 5, "n": 2}
    theirs = reasoners[name].generate(PROMPTS, max_new_tokens=14, temperature=1.0, seed=5, samples=2)
    made = client.completions.create(model=name, prompt=PROMPTS, **options)
    assert [choice.text for choice in made.choices] == [answer.text for answer in theirs]
    reasons = ["length" if one.completion.finish_reason == "length" else "stop" for one in theirs]
    assert [choice.finish_reason for choice in made.choices] == reasons
    thoughts = sum(one.completion.num_thoughts for one in theirs)
    written = sum(len(one.completion.tokens) for one in theirs)
    assert made.usage.completion_tokens_details.reasoning_tokens == thoughts
    assert made.usage.completion_tokens == thoughts + written
    assert made.usage.total_tokens == made.usage.prompt_tokens + made.usage.completion_tokens
    chunks = list(
        client.completions.create(
            model=name, prompt=PROMPTS, stream=True, stream_options={"include_usage": True}, **options
        )
    )
    assert streamed(chunks) == {index: answer.text for index, answer in enumerate(theirs)}
    assert chunks[-1].usage.model_dump(exclude={"prompt_tokens_details"}) == made.usage.model_dump(
        exclude={"prompt_tokens_details"}
    )
    assert not any(marker in choice.text for choice in made.choices for marker in MARKERS)
    stop = next(answer.text[1:3] for answer in theirs if len(answer.text) > 3)
    cut = client.completions.create(model=name, prompt=PROMPTS, stop=[stop], **options)
    assert [choice.text for choice in cut.choices] == [answer.text.partition(stop)[0] for answer in theirs]
    chunks = client.completions.create(model=name, prompt=PROMPTS, stop=stop, stream=True, **options)
    assert streamed(chunks) == {choice.index: choice.text for choice in cut.choices}


def test_chats_join_their_messages(client, reasoners):
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "é?"}]},
    ]
    (answer,) = reasoners["coconut"].generate("Be brief.\né?", max_new_tokens=9)
    made = client.chat.completions.create(model="coconut", messages=messages, max_completion_tokens=9)
    assert (made.choices[0].message.role, made.choices[0].message.content) == ("assistant", answer.text)
    chunks = client.chat.completions.create(model="coconut", messages=messages, max_tokens=9, stream=True)
    assert streamed(chunks) == {0: answer.text}


def test_the_body_sets_how_to_think(client, reasoners):
    """Extra fields as ``openai``'s client sends them; thoughts come decoded, and before the text in a stream."""
    extras = {"n_thoughts": 5, "force_text_after": 3, "return_thoughts": True, "thought_top_k": 2}
    (answer,) = reasoners["coconut"].generate("hello", 5, force_text_after=3, max_new_tokens=6, keep_thoughts=True)
    decoded = reasoners["coconut"].decode_thoughts(answer, 2)
    made = client.completions.create(model="coconut", prompt="hello", max_tokens=6, extra_body=extras)
    assert made.choices[0].text == answer.text
    thoughts = made.choices[0].thoughts
    assert [[top["token"] for top in one["top"]] for one in thoughts] == [one.tokens for one in decoded]
    assert [one["top"][0]["probability"] for one in thoughts] == pytest.approx(
        [one.probabilities[0] for one in decoded], rel=1e-4
    )
    chunks = list(
        client.chat.completions.create(
            model="coconut",
            messages=[{"role": "user", "content": "hello"}],
            max_tokens=6,
            stream=True,
            extra_body=extras,
        )
    )
    assert [len(chunk.choices[0].thoughts) for chunk in chunks[1:2]] == [3]
    assert streamed(chunks) == {0: answer.text}


def test_log_probabilities_are_the_engines(client, reasoners):
    from coconut_ds.generation.batch import generate
    from coconut_ds.generation.prompter import Writing

    reasoner = reasoners["coconut"]
    prompter = reasoner.prompter
    writing = Writing(8, log_probabilities=True)
    request = prompter.request(prompter.encode(["hello"])[0], reasoner.thoughts(), writing)
    (completion,) = generate(reasoner.loop, [request], prompter.eos_ids)
    made = client.completions.create(model="coconut", prompt="hello", max_tokens=8, logprobs=2)
    found = made.choices[0].logprobs
    assert found.token_logprobs == pytest.approx(completion.log_probabilities, abs=1e-4)
    assert len(found.tokens) == len(found.text_offset) == len(completion.tokens)
    assert all(1 <= len(top) <= 2 for top in found.top_logprobs)
    messages = [{"role": "user", "content": "hello"}]
    chat = client.chat.completions.create(
        model="coconut", messages=messages, max_tokens=8, logprobs=True, top_logprobs=1
    )
    content = chat.choices[0].logprobs.content
    assert [one.logprob for one in content] == pytest.approx(completion.log_probabilities, abs=1e-4)
    chunks = client.completions.create(model="coconut", prompt="hello", max_tokens=8, logprobs=0, stream=True)
    parts = [value for chunk in chunks for value in chunk.choices[0].logprobs.token_logprobs]
    assert parts == pytest.approx(completion.log_probabilities, abs=1e-4)


def test_parts_of_characters_have_log_probabilities_of_their_own(client):
    """The random model writes parts of characters: each has its own key and bytes, and no text ends within one."""
    options = {"model": "coconut", "max_tokens": 20, "temperature": 1.0, "seed": 1, "n": 4}
    made = client.completions.create(prompt="é€😀", logprobs=5, **options)
    messages = [{"role": "user", "content": "é€😀"}]
    chat = client.chat.completions.create(messages=messages, logprobs=True, top_logprobs=5, **options)
    parts: dict[int, list] = {}
    for chunk in client.completions.create(prompt="é€😀", logprobs=5, stream=True, **options):
        parts.setdefault(chunk.choices[0].index, []).append(chunk.choices[0].logprobs.model_dump())
    assert any("bytes:" in token for choice in made.choices for token in choice.logprobs.tokens)
    for choice, other in zip(made.choices, chat.choices, strict=True):
        found = choice.logprobs
        assert {len(top) for top in found.top_logprobs} == {5}
        for token, value, top in zip(found.tokens, found.token_logprobs, found.top_logprobs, strict=True):
            assert top.get(token, value) == value
        text = b"".join(bytes(one.bytes) for one in other.logprobs.content).decode(errors="replace")
        assert text.startswith(choice.text)
        assert text.removeprefix(choice.text) in ("", "\N{REPLACEMENT CHARACTER}")
        assert all(len({top.token for top in one.top_logprobs}) == 5 for one in other.logprobs.content)
        joined = {name: [value for part in parts[choice.index] for value in part[name]] for name in parts[0][0]}
        assert joined == found.model_dump()


@pytest.mark.parametrize("name", FOLDERS)
def test_traces_are_those_of_probing(http, reasoners, name):
    body = {"model": name, "question": "hello", "max_tokens": 5, "top_k": 3, "layers": True, "tokens": ["a"]}
    if name == "cot":
        found = http.post("/v1/thoughts", json=body).json()
        assert (found["thoughts"], found["method"]) == ([], "cot")
        return
    answer = http.post("/v1/thoughts", json=body)
    assert answer.status_code == 200, answer.text
    found = answer.json()
    (own,) = trace_thoughts(reasoners[name], "hello", top_k=3, tokens=["a"], max_new_tokens=5)
    if name == "coconut":
        assert found["text"] == own.text
        assert found["usage"]["completion_tokens_details"]["reasoning_tokens"] == 2
    assert len(found["thoughts"]) == len(own.thoughts)
    for ours, theirs in zip(found["thoughts"], own.thoughts, strict=True):
        assert ours["decoded"]["tokens"] == theirs.decoded.tokens
        assert [layer["tokens"] for layer in ours["layers"]] == [layer.tokens for layer in theirs.layers]
        assert ours["norm"] == pytest.approx(theirs.norm, rel=1e-3)
        assert (ours["cosine_to_previous"] or 0.0) == pytest.approx(theirs.cosine_to_previous or 0.0, abs=1e-3)
        assert ours["decoded"]["entropy"] == pytest.approx(theirs.decoded.entropy, rel=1e-3)
    assert set(found["timings_ms"]) == {"prefill", "thoughts", "text"}
    assert all(value >= 0 for value in found["timings_ms"].values())
    del body["layers"]
    assert all("layers" not in one for one in http.post("/v1/thoughts", json=body).json()["thoughts"])


def test_models_health_version_and_metrics(client, http, server):
    models = {model.id: model for model in client.models.list()}
    assert list(models) == list(FOLDERS)
    assert (models["coconut"].method, models["coconut"].stage, models["coconut"].n_thoughts) == ("coconut", 1, 2)
    assert client.models.retrieve("coconut").id == "coconut"
    assert http.get("/version").json()["version"] == "0.1.0"
    assert http.get("/health").json() == {"status": "ok", "problems": {}}
    assert "/v1/thoughts" in http.get("/openapi.json").json()["paths"]
    assert "thought_top_k" in http.get("/docs").text
    before = {name: server.metric(name) for name in COUNTED}
    client.completions.create(model="coconut", prompt="hello", max_tokens=7, extra_body={"min_tokens": 7})
    added = {name: server.metric(name) - value for name, value in before.items()}
    assert added == {
        "generation_tokens_total": 7,
        "thoughts_total": 2,
        "prompt_tokens_total": 8,
        "time_to_first_token_seconds_count": 1,
        "inter_token_latency_seconds_count": 6,
        "e2e_request_latency_seconds_count": 1,
    }
    assert (server.metric("num_slots"), server.metric("num_requests_running")) == (12, 0)
    assert http.get("/metrics", headers={"x-request-id": "mine-1"}).headers["x-request-id"] == "mine-1"


COUNTED = (
    "generation_tokens_total",
    "thoughts_total",
    "prompt_tokens_total",
    "time_to_first_token_seconds_count",
    "inter_token_latency_seconds_count",
    "e2e_request_latency_seconds_count",
)


def test_a_full_queue_is_answered_with_when_to_try_again(server):
    """4 completions run and 32 wait; three requests of 16 long completions are more than that."""
    body = {"model": "coconut", "prompt": "a", "max_tokens": 200, "min_tokens": 200, "n": 16, "temperature": 1.0}

    def ask(_):
        with server.client() as one:
            return one.post("/v1/completions", json=body)

    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(ask, range(4)))
    refused = [answer for answer in answers if answer.status_code == 429]
    assert refused
    assert {answer.status_code for answer in answers} == {200, 429}
    assert refused[0].headers["retry-after"] == "1"
    assert refused[0].json()["error"]["code"] == "queue_full"


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_goes_away_frees_its_slot_at_once(server, stream):
    before = server.metric("request_cancelled_total")
    body = {"model": "coconut", "prompt": "a", "max_tokens": 230, "min_tokens": 230, "n": 4, "stream": stream}
    with server.client() as one:
        if stream:
            with one.stream("POST", "/v1/completions", json=body) as answer:
                next(answer.iter_raw())
        else:
            with pytest.raises(httpx.ReadTimeout):
                one.post("/v1/completions", json=body, timeout=0.2)
    ends = time.monotonic() + 10
    while server.metric("num_requests_running") and time.monotonic() < ends:
        time.sleep(0.01)
    assert server.metric("num_requests_running") == 0
    assert server.metric("request_cancelled_total") == before + 4


def test_curl_sees_events_byte_by_byte(server):
    """The lines of a stream; each is valid UTF-8 on its own."""
    body = json.dumps({"model": "coconut", "prompt": "é€😀", "max_tokens": 9, "min_tokens": 9, "stream": True})
    command = ["curl", "-sN", "-H", f"Authorization: Bearer {KEY}", "-H", "Content-Type: application/json", "-i"]
    done = subprocess.run([*command, "-d", body, server.url + "/v1/completions"], capture_output=True, check=True)
    head, _, rest = done.stdout.partition(b"\r\n\r\n")
    assert b"content-type: text/event-stream" in head
    *parts, end, nothing = rest.split(b"\n\n")
    assert (end, nothing) == (b"data: [DONE]", b"")
    for part in parts:
        values = json.loads(part.removeprefix(b"data: ").decode("utf-8", "strict"))
        assert values["object"] == "text_completion"
    assert values["choices"][0]["finish_reason"] == "length"
    assert [one["choices"][0]["finish_reason"] for one in events(rest)][:-1] == [None] * (len(parts) - 1)
