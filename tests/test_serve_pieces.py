"""Answers in pieces: the bytes of whole answers, sent no faster than they are read, with comments in quiet streams."""

import asyncio
import copy
import inspect
import json
import random
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from types import SimpleNamespace
from typing import Any

import pytest
from fastapi import FastAPI
from hypothesis import given, settings
from hypothesis import strategies as st
from making_guards import Exchange
from making_tokenizers import tokenizers
from starlette.responses import JSONResponse

from coconut_ds.data.tokens import add_markers
from coconut_ds.formats import TEXT
from coconut_ds.generation.decoding import DecodedThought
from coconut_ds.generation.prompter import Prompter
from coconut_ds.generation.requests import Completion, Score
from coconut_ds.methods import METHODS
from coconut_ds.model.backbone import Backbone
from serve.api import completions, streams
from serve.api.completions import _Exchange
from serve.api.logprobs import ScoredText, within
from serve.api.pieces import joined
from serve.api.records import Record
from serve.api.responses import ChatFormat, CompletionFormat, thoughts_of, usage_of
from serve.api.schema import ChatRequest, CompletionRequest
from serve.api.streams import COMMENT, ClientGoneError, EventStream, PiecesResponse, json_response
from serve.clients.client import IN_PROCESS
from serve.engine.jobs import Times
from serve.limits import Limits
from serve.requests.continuations import Choice


class Client:
    """Receives a response, over ASGI."""

    def __init__(self, takes_s: float = 0.0) -> None:
        self.takes_s = takes_s
        self.start: dict[str, Any] = {}
        self.pieces: list[bytes] = []

    async def receive(self) -> dict[str, Any]:
        """The client stays."""
        await asyncio.Event().wait()
        raise AssertionError

    async def send(self, message: dict[str, Any]) -> None:
        """Takes a piece."""
        if message["type"] == "http.response.start":
            self.start = message
            return
        await asyncio.sleep(self.takes_s)
        self.pieces.append(message.get("body", b""))

    def read(self, response: Any) -> bytes:
        """The body of a response, or of one that a coroutine makes."""

        async def read_it():
            made = await response if inspect.isawaitable(response) else response
            await made({"type": "http"}, self.receive, self.send)

        asyncio.run(read_it())
        return b"".join(self.pieces)


async def gathered(pieces: AsyncIterator[bytes]) -> bytes:
    return b"".join([piece async for piece in pieces])


def choices_of(prompter: Prompter, rng: random.Random, count: int, length: int, likeliest: int) -> list[Choice]:
    known = len(prompter.tokenizer)
    made = []
    for index in range(count):
        ids = [rng.randrange(known) for _ in range(length)]
        scores = [
            Score(-1.5, True, tuple((rng.randrange(known), -rng.random()) for _ in range(likeliest))) for _ in ids
        ]
        completion = Completion(ids, "length", scores, 0, None, 0, 0.0)
        # As if a stop string had cut the text: tokens of the rest are placed at its end.
        text = prompter.cut(ids, ())[: length // 2]
        made.append(Choice(index, text, "length", completion, 3, Times()))
    return made


@pytest.mark.parametrize(("format", "kind"), [(CompletionFormat(), "gpt2"), (ChatFormat(), "wordpiece")])
@pytest.mark.parametrize(("count", "length", "likeliest", "top_k"), [(1, 5, 2, 0), (3, 70, 5, 2), (2, 0, 1, 1)])
def test_pieces_are_the_bytes_of_the_whole_answer(format, kind, count, length, likeliest, top_k):
    tokenizer = copy.deepcopy(tokenizers()[kind])
    model: Any = SimpleNamespace()
    prompter = Prompter(Backbone(model, tokenizer, add_markers(tokenizer)[0]), METHODS["coconut"], TEXT)
    choices = choices_of(prompter, random.Random(0), count, length, likeliest)
    thoughts = [DecodedThought(["ä", '"'], [0.5, 0.25], 1.5)] * top_k
    shown = []
    for choice in choices:
        text = ScoredText(prompter)
        pairs = zip(choice.completion.tokens, choice.completion.scores, strict=True)
        scored = [text.add(token, score) for token, score in pairs if token not in prompter.eos_ids]
        logprobs = format.logprobs(within(scored, len(choice.text)))
        more = {"thoughts": thoughts_of(thoughts)} if top_k else {}
        shown.append({**format.choice(choice, logprobs), **more})

    fields = {"model": "m", "return_thoughts": bool(top_k) or None}
    body: Any = (
        CompletionRequest(prompt="a", logprobs=likeliest, **fields)
        if kind == "gpt2"
        else ChatRequest(messages=[{"role": "user", "content": "a"}], logprobs=True, top_logprobs=likeliest, **fields)
    )
    exchange = _Exchange(SimpleNamespace(), body, body.to_ask(), format, SimpleNamespace(), "id")
    whole = JSONResponse({**exchange._head, "choices": shown, "usage": usage_of(choices, 1)}).body
    decoded = [thoughts if top_k else None for _ in choices]
    assert asyncio.run(gathered(exchange._pieces(prompter, list(choices), decoded))) == whole


@given(parts=st.lists(st.lists(st.floats(allow_nan=False, allow_infinity=False) | st.text(), max_size=3), max_size=4))
def test_lists_are_joined(parts):
    made = joined({"a": part, "b": None, "c": [[one] for one in part]} for part in [[], *parts])
    everything = [one for part in parts for one in part]
    assert json.loads(made) == {"a": everything, "b": None, "c": [[one] for one in everything]}


@settings(max_examples=20, deadline=None)
@given(sizes=st.lists(st.integers(0, 90_000), max_size=5))
def test_short_answers_have_a_length_and_long_ones_come_in_pieces(sizes):
    async def pieces():
        for size in sizes:
            yield b"x" * size

    client = Client()
    assert len(client.read(json_response(pieces()))) == sum(sizes)
    assert (b"content-length" in dict(client.start["headers"])) == (sum(sizes) <= streams.WHOLE)
    assert max(map(len, client.pieces), default=0) <= streams.WHOLE


def test_no_piece_is_made_before_the_last_one_is_read(monkeypatch):
    """A client that does not read costs one piece of memory, and is left after the limit."""
    monkeypatch.setattr(streams, "SEND_S", 0.1)
    made, closed = [], []

    async def pieces():
        try:
            for number in range(100):
                made.append(number)
                yield b"x"
        finally:
            closed.append(True)

    assert Client(takes_s=60).read(PiecesResponse(pieces())) == b""
    assert (made, closed) == ([0], [True])


def test_a_quiet_stream_gets_comments_between_its_events():
    """The silence lasts until two of them have come."""

    class Quiet(Client):
        async def send(self, message: dict[str, Any]) -> None:
            await super().send(message)
            if self.pieces.count(COMMENT) == 2:
                two.set()

    two = asyncio.Event()

    async def events():
        for _ in range(3):
            yield b"data: 1\n\n"
        async with asyncio.timeout(20):
            await two.wait()
        yield b"data: 2\n\n"

    began = time.monotonic()
    whole = Quiet().read(EventStream(events(), AsyncExitStack(), comment_s=0.08))
    assert time.monotonic() - began > 0.15
    before, comments, after = whole.partition(COMMENT)[0], whole.count(COMMENT), whole.rpartition(COMMENT)[2]
    assert (before, after) == (b"data: 1\n\n" * 3, b"data: 2\n\n")
    assert comments >= 2


def test_no_comment_follows_the_end_or_waits_behind_a_slow_event():
    async def events():
        yield b"data: 1\n\n"
        yield b"data: 2\n\n"

    client = Client(takes_s=0.05)
    assert client.read(EventStream(events(), AsyncExitStack(), comment_s=0.02)) == b"data: 1\n\ndata: 2\n\n"


def test_a_stream_is_not_begun_for_a_client_that_left_while_its_model_was_loaded():
    left = []

    class Loading:
        limits = Limits()

        def begun(self, ask):
            return ask

        @asynccontextmanager
        async def streaming(self, ask, request_id):
            try:
                await asyncio.sleep(60)
                yield
            finally:
                left.append(ask.model)

    async def ask() -> None:
        app = FastAPI()
        app.include_router(completions.routes(Loading()))
        state = {"client": IN_PROCESS, "request_id": "1", "record": Record("POST", "/v1/completions", [])}
        headers = [(b"content-type", b"application/json")]
        scope = {"type": "http", "method": "POST", "path": "/v1/completions", "headers": headers, "state": state}
        scope |= {"query_string": b"", "root_path": ""}
        exchange = Exchange([b'{"model": "one", "prompt": "a", "stream": true}'])
        async with asyncio.timeout(5):
            await app(scope, exchange.receive, exchange.send)

    with pytest.raises(ClientGoneError):
        asyncio.run(ask())
    assert left == ["one"]
