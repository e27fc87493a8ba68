"""The server as a process: signals, restarts, command lines, and small versions of the long load tests."""

import re
import signal
import threading
import time

import httpx
import pytest
from fuzz_bodies import Fuzz, checkpoints, run_fuzz
from mixed_load import holds, run_load
from schema_cases import run_cases
from serving import save_checkpoint, serving
from waiting import wait_until

from serve.cli import main

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("process")
    save_checkpoint(place / "coconut")
    return place


@pytest.mark.parametrize("limit_s", [60, 4])
def test_sigterm_drains(folder, limit_s):
    """20 streams are open. They finish if there is time and otherwise end with an error. New requests are refused."""
    options = ("--slots", "4", "--load", "--drain-s", str(limit_s))
    # Five rounds of four streams, which end in time, or have begun when time is up.
    length = 120 if limit_s > 10 else 240
    body = {"model": "coconut", "prompt": "a", "max_tokens": length, "min_tokens": length, "stream": True}
    answers: list[bytes] = []
    ended: list[float] = []
    with serving(folder / "coconut", options=options) as server:

        def stream() -> None:
            with server.client() as one, one.stream("POST", "/v1/completions", json=body) as answer:
                answers.append(b"".join(answer.iter_raw()))
                ended.append(time.monotonic())

        threads = [threading.Thread(target=stream) for _ in range(20)]
        for thread in threads:
            thread.start()
        wait_until(
            lambda: sum(map(server.metric, ("num_requests_running", "num_requests_waiting", "request_success"))) >= 20
        )
        began = time.monotonic()
        server.process.send_signal(signal.SIGTERM)
        seen = []
        while server.process.poll() is None and time.monotonic() < began + limit_s + 60:
            try:
                seen.append(httpx.get(server.url + "/health", verify=False).status_code)
                refused = httpx.post(server.url + "/v1/completions", json=body, verify=False)
                assert (refused.status_code, refused.headers["retry-after"]) == (503, "5")
            except httpx.TransportError:
                pass
            time.sleep(0.05)
        for thread in threads:
            thread.join(10)
        assert server.process.wait(60) == 0, server.log
    assert 503 in seen
    assert len(answers) == 20
    assert all(answer.endswith(b"data: [DONE]\n\n") for answer in answers)
    finished = sum(b'"finish_reason":"length"' in answer for answer in answers)
    told = sum(b'"code":"unavailable"' in answer for answer in answers)
    assert finished + told == 20
    assert max(ended) - began < limit_s, server.log
    if limit_s > 10:
        assert finished == 20


def test_killed_and_started_again_it_is_ready(folder):
    with serving(folder / "coconut", options=("--load",), real=True) as server:
        with server.client() as one:
            assert one.get("/health").status_code == 200
        assert server.stop(signal.SIGKILL) == -signal.SIGKILL
    with serving(folder / "coconut", options=("--load",)) as again, again.client() as one:
        body = {"model": "coconut", "prompt": "a", "max_tokens": 2}
        assert one.post("/v1/completions", json=body).status_code == 200


def test_wrong_command_lines_are_refused_in_one_line(folder, tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("COCONUT_API_KEY", raising=False)
    (tmp_path / "empty").write_text("")
    tiny = str(folder / "coconut")
    for arguments, says in (
        (["--checkpoint", str(tmp_path / "x")], "no such folder"),
        (["--checkpoint", tiny, "--host", "0.0.0.0"], "COCONUT_API_KEY"),
        (["--checkpoint", tiny, "--api-key-file", str(tmp_path / "empty")], "is empty"),
        (["--checkpoint", tiny, "--max-waiting", "1"], "max_waiting=1"),
        (["--checkpoint", tiny, "--slots", "0"], "slots=0"),
        (["--checkpoint", tiny, "--root-path", "models"], "--root-path models"),
        (["--checkpoint", tiny, "--allowed-host", "http://a.b"], "without scheme"),
        (["--checkpoint", tiny, "--trusted-proxy", "a.b"], "IP address of a proxy"),
        (["--checkpoint", tiny, "--requests-per-minute", "0"], "expected 1 or more"),
        (["--checkpoint", tiny, "--max-connections", "0"], "expected 1 to"),
        (["--checkpoint", tiny, "--head-s", "0"], "head_s=0"),
        (["--checkpoint", tiny, "--tls-cert", str(tmp_path / "empty")], "--tls-key is missing"),
    ):
        assert main(["api", *arguments]) == 2
        told = capsys.readouterr().err
        assert re.fullmatch(r"error: [^\n]*\n", told), told
        assert says in told


def test_bodies_of_every_kind_harm_nobody(tmp_path):
    """A small ``python tests/fuzz_bodies.py``; how long others wait is only measured there."""
    with serving(*checkpoints(tmp_path), options=("--slots", "8")) as server:
        result = run_fuzz(server, Fuzz(server, 0, tmp_path / "wrong", heavy=0.03, only=None), 100, warm_up=20)
        faults = {name: result[name] for name in ("wrong", "others_failed", "health_failed")}
        assert not any(faults.values()), (faults, result["first_wrong"], result["first_others"], server.log[-3000:])
    assert result["others"] > 3
    assert result["statuses"][200] > 10


def test_a_load_of_mixed_requests(tmp_path):
    """A small ``python tests/mixed_load.py``."""
    result = run_load(250, tmp_path)
    assert holds({**result, "memory_growth": 0}), result


def test_cases_made_of_the_description(tmp_path):
    """A small ``python tests/schema_cases.py``: one round, with fewer random cases."""
    result = run_cases(1, tmp_path, examples=10)
    assert not result["faults"], result["output"]
    assert "500" not in result["statuses"]
    assert result["cases"] > 400
