"""The OpenAI server: vLLM's own, in processes of its own, with preemptions."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
import tiny
from conftest import REFERENCE, SETTINGS, SMALL_CACHE, whole

RIGHT = REFERENCE["llama"]["answers"]
TEXTS = [whole(one["text"]) for one in RIGHT]
READY_S = 400


def command(folder, port, **changed):
    """The command line of the server."""
    values = {
        "model": folder,
        "served-model-name": "tiny",
        "host": "127.0.0.1",
        "port": port,
        "dtype": "float32",
        "block-size": 32,
        "max-model-len": 128,
        "additional-config": json.dumps({"coconut": {"max_thoughts": 8}}),
        "chat-template": Path(__file__).parent.parent / "coconut_vllm" / "chat_template.jinja",
    } | {name.replace("_", "-"): value for name, value in (SMALL_CACHE | changed).items()}
    given = [part for name, value in values.items() for part in (f"--{name}", str(value))]
    return [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--enforce-eager", *given]


def start(folder, log, **changed):
    """A server process and its address, once it is ready."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {**os.environ, **SETTINGS, "VLLM_ENABLE_V1_MULTIPROCESSING": "1"}
    with log.open("w") as output:
        process = subprocess.Popen(
            command(folder, port, **changed), env=environment, stdout=output, stderr=output, start_new_session=True
        )
    address, until = f"http://127.0.0.1:{port}", time.monotonic() + READY_S
    while time.monotonic() < until and process.poll() is None:
        try:
            if httpx.get(f"{address}/health").status_code == 200:
                return process, address
        except httpx.TransportError:
            time.sleep(0.5)
    process.kill()
    raise RuntimeError(f"the server did not start: {log.read_text()[-3000:]}")


@pytest.fixture(scope="module")
def server(checkpoint, tmp_path_factory):
    """A client of the server."""
    process, address = start(checkpoint("llama"), tmp_path_factory.mktemp("server") / "log.txt")
    with httpx.Client(base_url=address, timeout=300) as client:
        yield client
    os.killpg(process.pid, signal.SIGTERM)
    process.wait(60)


def body(index, **changed):
    """The request for a question of ``tiny``."""
    text, arguments = tiny.asked("llama")[index]
    whole = {"model": "tiny", "prompt": text, "temperature": 0, "max_tokens": tiny.NEW_TOKENS}
    return whole | {"vllm_xargs": arguments} | changed


def metric(server, name):
    """The value of a counter."""
    lines = server.get("/metrics").text.splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith(f"{name}{{"))


def test_40_clients_at_once_get_the_reference_texts_through_preemptions(server):
    with ThreadPoolExecutor(40) as clients:
        answers = list(clients.map(lambda i: server.post("/v1/completions", json=body(i)), range(40)))
    assert [answer.status_code for answer in answers] == [200] * 40
    assert [whole(answer.json()["choices"][0]["text"]) for answer in answers] == TEXTS
    for answer, right in zip(answers, RIGHT, strict=True):
        assert answer.json()["usage"]["completion_tokens"] == len(right["tokens"]) + right["thoughts"] + 1
    assert metric(server, "vllm:num_preemptions_total") > 0


def test_a_stream_has_the_same_text(server):
    with server.stream("POST", "/v1/completions", json=body(7, stream=True)) as stream:
        lines = [line[6:] for line in stream.iter_lines() if line.startswith("data: {")]
    assert whole("".join(json.loads(line)["choices"][0]["text"] for line in lines)) == TEXTS[7]


def test_a_chat_with_one_message_is_the_question(server):
    message = body(7)
    message["messages"] = [{"role": "user", "content": message.pop("prompt")}]
    answer = server.post("/v1/chat/completions", json=message)
    assert whole(answer.json()["choices"][0]["message"]["content"]) == TEXTS[7]


WRONG = {
    "unknown": {"vllm_xargs": {"n_thought": 4}},
    "expected an integer": {"vllm_xargs": {"n_thoughts": "4"}},
    "room for 8": {"vllm_xargs": {"n_thoughts": 9}},
    "beam search": {"use_beam_search": True, "n": 2},
    "structured_outputs": {"structured_outputs": {"json": {"type": "object"}}},
    "holds markers": {"prompt": [5, tiny.tokenizer().get_vocab()["<|latent|>"]]},
    "not those of the whole text": {"truncate_prompt_tokens": 3},
    "priority": {"priority": 3},
    "prompt_embeds": {"prompt_embeds": "AAAA"},
    "presence_penalty": {"presence_penalty": 1.0},
    "stop_token_ids": {"stop_token_ids": [tiny.tokenizer().get_vocab()["<|latent|>"]]},
}


@pytest.mark.parametrize(
    ("message", "changed"),
    [
        ("priority scheduling", {"scheduling_policy": "priority"}),
        ("pipeline parallelism", {"pipeline_parallel_size": 2}),
    ],
)
def test_a_setting_with_which_it_would_not_think_stops_the_server(checkpoint, tmp_path, message, changed):
    """The other settings are refused at the same place (``test_refusals.py``)."""
    with pytest.raises(RuntimeError, match=message):
        start(checkpoint("llama"), tmp_path / "log.txt", **changed)


@pytest.mark.parametrize("message", WRONG)
def test_a_request_that_would_be_answered_wrongly_gets_400(server, message):
    """And the server goes on."""
    answer = server.post("/v1/completions", json=body(3, **WRONG[message]))
    assert answer.status_code == 400, answer.text
    assert message in answer.text
    assert whole(server.post("/v1/completions", json=body(3)).json()["choices"][0]["text"]) == TEXTS[3]


def test_beam_search_in_a_chat_gets_400(server):
    content = {"model": "tiny", "messages": [{"role": "user", "content": "Tom?"}], "use_beam_search": True, "n": 2}
    answer = server.post("/v1/chat/completions", json=content)
    assert (answer.status_code, "beam search" in answer.text) == (400, True)


def test_clients_that_leave_within_thoughts_change_no_other_answer(server):
    """Half of the clients leave; afterwards nothing runs or waits."""

    def leave(index):
        with server.stream("POST", "/v1/completions", json=body(index, stream=True)) as stream:
            next(stream.iter_lines())
        return None

    def stay(index):
        return whole(server.post("/v1/completions", json=body(index)).json()["choices"][0]["text"])

    with ThreadPoolExecutor(40) as clients:
        answers = list(clients.map(lambda i: leave(i) if i % 2 else stay(i), range(40)))
    assert answers[::2] == TEXTS[::2]
    for _ in range(50):
        if metric(server, "vllm:num_requests_running") + metric(server, "vllm:num_requests_waiting") == 0:
            return
        time.sleep(0.1)
    raise AssertionError("requests of clients that left still run")
