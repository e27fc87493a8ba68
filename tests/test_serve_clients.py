"""A real server process, asked by the clients that people use: openai-python, LangChain, LiteLLM and curl."""

import importlib.util
import json
import subprocess
import sys

import pytest
from real_clients import CLIENTS, MAX_TOKENS, PROMPT
from serving import ROOT, save_checkpoint, serving

from coconut_ds import load_reasoner

pytestmark = pytest.mark.slow
KEY = "sesame"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return save_checkpoint(tmp_path_factory.mktemp("clients") / "coconut")


@pytest.fixture(scope="module")
def server(checkpoint):
    with serving(checkpoint, key=KEY, options=("--slots", "4", "--load")) as running:
        yield running


@pytest.fixture(scope="module")
def reasoner(checkpoint):
    return load_reasoner(checkpoint)


@pytest.fixture(scope="module")
def told(server):
    """What the real clients got, by client; one process asks with all of them."""
    command = [sys.executable, str(ROOT / "tests" / "real_clients.py"), f"{server.url}/v1", KEY, "coconut"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("name", CLIENTS)
def test_real_clients_get_the_reasoners_answers(told, reasoner, name):
    """With the fields that each client sends by itself; a tool is refused by the field's name."""
    if importlib.util.find_spec(name) is None:
        pytest.skip(f"{name} is not installed: pip install -c constraints.txt -e '.[dev]'")
    (first,) = reasoner.generate(PROMPT, max_new_tokens=MAX_TOKENS)
    (second,) = reasoner.generate(f"{PROMPT}\n{first.text}\nand?", max_new_tokens=MAX_TOKENS)
    answers = dict(told[name])
    assert "error" not in answers, answers["error"]
    refused = answers.pop("tools")
    assert refused.startswith("BadRequestError")
    assert "tools: is " in refused
    assert "cannot call tools" in refused
    expected = {"dumped": second.text, "object": second.text, "completion batch": [first.text] * 2, "usage": True}
    assert answers == {what: expected.get(what, first.text) for what in answers}
    assert len(answers) >= 5


def test_curl_is_told_what_to_send_and_may_ask_for_the_head_alone(server):
    body = json.dumps({"model": "coconut", "prompt": "a", "max_tokens": 1})
    command = ["curl", "-s", "-H", f"Authorization: Bearer {KEY}", "-w", "%{http_code}"]
    done = subprocess.run([*command, "-d", body, server.url + "/v1/completions"], capture_output=True, check=True)
    assert b"curl: -H 'Content-Type: application/json'" in done.stdout
    assert done.stdout.endswith(b"415")
    for path in ("/health", "/", "/docs", "/v1/models/coconut"):
        done = subprocess.run([*command, "-I", server.url + path], capture_output=True, check=True)
        assert done.stdout.startswith(b"HTTP/1.1 200"), path
