"""What the server's app refuses, in process: each answer names the field, and OpenAI's client knows the error."""

import json
import re

import openai
import pytest
from serving import save_checkpoint
from starlette.testclient import TestClient

from serve.api.app import create_app
from serve.cli import LIMITS
from serve.clients.access import Access
from serve.clients.keys import Keys
from serve.launch import make_service
from serve.limits import EngineSettings, Limits

KEY = "sesame"
OPTIONS = {"--max-positions", *(f"--{name.replace('_', '-')}" for name in LIMITS)}


@pytest.fixture(scope="module")
def app(tmp_path_factory):
    """The whole app over two checkpoints, behind a key."""
    place = tmp_path_factory.mktemp("refusals")
    for number, method in enumerate(("coconut", "cot")):
        save_checkpoint(place / method, method, seed=number)
    checkpoints = [str(place / name) for name in ("coconut", "cot")]
    service, metrics = make_service(checkpoints, EngineSettings(4), Limits(body_bytes=100_000, max_waiting=32))
    yield create_app(service, metrics, Access(Keys.single(KEY)))
    service.close()


@pytest.fixture(scope="module")
def stranger(app):
    """A client without a key."""
    with TestClient(app, raise_server_exceptions=False) as one:
        yield one


@pytest.fixture(scope="module")
def http(app):
    with TestClient(app, raise_server_exceptions=False, headers={"Authorization": f"Bearer {KEY}"}) as one:
        yield one


def openai_client(app, key: str) -> openai.OpenAI:
    transport = TestClient(app, raise_server_exceptions=False)
    return openai.OpenAI(base_url="http://testserver/v1", api_key=key, max_retries=0, http_client=transport)


@pytest.mark.parametrize(
    ("change", "status", "param", "says"),
    [
        ({"max_tokens": 0}, 400, "max_tokens", "expected 1 to 2048"),
        ({"max_tokens": "8"}, 400, "max_tokens", "valid integer"),
        ({"max_tokens": True}, 400, "max_tokens", "valid integer"),
        ({"n_thoughts": 65}, 400, "n_thoughts", "expected 0 to 64"),
        ({"thought_noise": "svp"}, 400, "thought_noise", "'none', 'gaussian' or 'dropout'"),
        ({"thought_noise": "gaussian"}, 400, "thought_noise", "needs thought_sigma"),
        ({"thought_noise": "gaussian", "thought_sigma": 1000.5}, 400, "thought_sigma", "less than or equal to 1000"),
        ({"thought_noise": "gaussian", "thought_sigma": "1"}, 400, "thought_sigma", "valid number"),
        ({"thought_noise": "dropout", "thought_dropout": 1}, 400, "thought_dropout", "less than 1"),
        ({"thought_dropout": 0.5}, 400, "thought_dropout", "is read only with thought_noise=dropout"),
        ({"model": "cot", "thought_noise": "gaussian", "thought_sigma": 1}, 400, "thought_noise", "does not think"),
        ({"n": 17}, 400, "n", "expected 1 to 16"),
        ({"prompt": ["a", "b"], "n": 16, "max_tokens": 100, "logprobs": 50}, 400, "logprobs", "--max-probabilities"),
        ({"temperature": -1}, 400, "temperature", "greater than or equal"),
        ({"max_tokens": 2049}, 400, "max_tokens", "the server's option --max-new-tokens sets this limit"),
        ({"max_tokens": 300}, 400, "max_tokens", "send a max_tokens of at most 246"),
        ({"max_tokens": 3, "min_tokens": 4}, 400, "min_tokens", "expected 0 to 3; max_tokens sets this limit"),
        ({"n_thoughts": 65}, 400, "n_thoughts", "--max-thoughts sets this limit"),
        ({"n": 17}, 400, "n", "--max-samples sets this limit"),
        ({"n": 16, "prompt": ["a", "b", "c"]}, 400, "n", "--max-completions sets this limit"),
        ({"prompt": ["a"] * 17}, 400, "prompt", "--max-prompts sets this limit"),
        ({"best_of": 2}, 400, "best_of", "is 2; expected 1"),
        ({"best_off": 2}, 400, "best_off", "unknown"),
        ({"tools": [{"type": "function"}]}, 400, "tools", "cannot call tools"),
        ({"stream_options": {"include_usage": 1}}, 400, "stream_options", "valid boolean"),
        ({"model": "/etc/passwd"}, 404, "model", "no checkpoint is named"),
        ({"prompt": "x" * 300}, 400, "prompt", "room for 256"),
        ({"prompt": "x" * 300}, 400, "prompt", "send a shorter prompt"),
        ({"prompt": []}, 400, "prompt", "expected 1 to 16"),
        ({"prompt": [999]}, 400, "prompt", "not a thought marker"),
        ({"prompt": "\ud800"}, 400, "prompt", "lone surrogate"),
        ({"stop": ["\ud800"]}, 400, "stop", "lone surrogate"),
        ({"model": "cot", "n_thoughts": 2}, 400, "n_thoughts", "does not think"),
        ({"user": "x" * 100_000}, 413, None, "100000 bytes (the server's option --body-bytes)"),
    ],
)
def test_refusals_name_the_field(http, change, status, param, says):
    body = {"model": "coconut", "prompt": "hello", "max_tokens": 3, **change}
    answer = http.post("/v1/completions", content=json.dumps(body), headers={"content-type": "application/json"})
    error = answer.json()["error"]
    assert (answer.status_code, error["param"]) == (status, param), error
    assert says in error["message"]
    assert set(re.findall(r"--[a-z-]+", error["message"])) <= OPTIONS


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'"a"',
        b"\xff\xfe",
        b'{"model": "\xff"}',
        b"[" * 50_000,
        b'{"model": 1e999}',
        b"1" * 9000,
    ],
)
def test_bodies_that_are_no_request(http, content):
    answer = http.post("/v1/completions", content=content, headers={"content-type": "application/json"})
    assert answer.status_code == 400
    assert set(answer.json()["error"]) == {"message", "type", "param", "code"}
    assert answer.json()["error"]["message"].startswith(("body: ", "model: "))


def test_routes_that_do_not_exist_are_refused_with_where_to_look(http):
    """Clients ask for embeddings and responses, too, and browsers for pages that other servers have."""
    for method, path in (("POST", "/v1/embeddings"), ("POST", "/v1/responses"), ("GET", "/redoc"), ("HEAD", "/x")):
        answer = http.request(method, path)
        assert answer.status_code == 404
        told = f"{'GET' if method == 'HEAD' else method} {path}: there is no such route; /docs lists all routes"
        assert method == "HEAD" or answer.json()["error"]["message"] == told
    answer = http.get("/v1/completions")
    assert (answer.status_code, answer.headers["allow"]) == (405, "POST")
    assert answer.json()["error"]["message"] == "/v1/completions: this route does not accept GET; send POST"


def test_the_key_opens_all_but_the_health(app, stranger):
    for path in ("/v1/models", "/metrics", "/version", "/docs", "/openapi.json", "/nothing"):
        for headers in ({}, {"Authorization": "Bearer sesam"}, {"Authorization": KEY}, {"Authorization": "Basic !"}):
            answer = stranger.get(path, headers=headers)
            assert (answer.status_code, answer.json()["error"]["code"]) == (401, "invalid_api_key"), path
    assert stranger.get("/health").status_code == 200
    assert stranger.get("/version", auth=("anybody", KEY)).status_code == 200
    with openai_client(app, "no") as client, pytest.raises(openai.AuthenticationError):
        client.models.list()


def test_errors_are_those_that_openais_client_knows(app):
    client = openai_client(app, KEY)
    with pytest.raises(openai.NotFoundError):
        client.completions.create(model="nothing", prompt="a")
    with pytest.raises(openai.BadRequestError, match="thoughts"):
        client.completions.create(model="coconut", prompt="a", extra_body={"thoughts": 3})


@pytest.mark.parametrize(
    ("seconds", "status", "says"),
    [
        ("soon", 400, "expected a number of seconds"),
        ("-1", 400, "is '-1'"),
        ("nan", 400, "is 'nan'"),
        ("1e-9", 504, "1e-09 s"),
    ],
)
@pytest.mark.parametrize("route", ["completions", "thoughts"])
def test_a_client_may_say_how_long_it_waits(http, route, seconds, status, says):
    body = {"model": "coconut", "prompt" if route == "completions" else "question": "a"}
    answer = http.post(f"/v1/{route}", json=body, headers={"X-Request-Timeout": seconds})
    assert answer.status_code == status, answer.text
    assert says in answer.json()["error"]["message"]
    assert "X-Request-Timeout" in answer.json()["error"]["message"]
    assert http.post(f"/v1/{route}", json=body, headers={"X-Request-Timeout": "60"}).status_code == 200
