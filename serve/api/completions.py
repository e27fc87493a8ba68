"""``POST /v1/completions`` and ``POST /v1/chat/completions``: the same steps, with two response formats."""

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from dataclasses import replace
from itertools import islice
from typing import Any

import torch
from fastapi import APIRouter, Request
from starlette.responses import Response

from coconut_ds.generation.decoding import DecodedThought
from coconut_ds.generation.prompter import Prompter
from serve.api.bodies import JsonRoute
from serve.api.errors import body_of
from serve.api.guards import client_of
from serve.api.logprobs import ScoredText, ScoredToken, within
from serve.api.pieces import dumps, joined, object_of
from serve.api.records import Record, record_of
from serve.api.responses import (
    ChatFormat,
    ChatResponse,
    CompletionFormat,
    CompletionResponse,
    ErrorResponse,
    ResponseFormat,
    thoughts_of,
    usage_of,
    warnings_of,
)
from serve.api.schema import ChatRequest, CompletionRequest, Generation
from serve.api.streams import END, EventStream, event, json_response, while_connected
from serve.api.timeouts import timeout_of
from serve.aside import aside
from serve.errors import ServiceError
from serve.requests.asking import Ask
from serve.requests.continuations import Choice, Delta
from serve.requests.service import Service

LARGE = 200
"""Probabilities. If a choice reports more, it is written aside of the event loop."""
NUM_AT_ONCE = 32
"""Number of tokens whose log probabilities are written at once."""
ERROR_RESPONSES: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorResponse} for status in (400, 401, 404, 408, 413, 415, 429, 500, 503, 504)
}


def routes(service: Service) -> APIRouter:
    """The two routes."""
    router = APIRouter(prefix="/v1", tags=["OpenAI"], responses=ERROR_RESPONSES, route_class=JsonRoute)

    @router.post("/completions", response_model=CompletionResponse, summary="Answers questions")
    async def complete(body: CompletionRequest, request: Request) -> Response:
        return await _respond(service, request, body, body.to_ask(), CompletionFormat())

    @router.post(
        "/chat/completions", response_model=ChatResponse, summary="Answers a question: the messages joined by newlines"
    )
    async def chat(body: ChatRequest, request: Request) -> Response:
        return await _respond(service, request, body, body.to_ask(), ChatFormat())

    return router


async def _respond(service: Service, request: Request, body: Generation, ask: Ask, format: ResponseFormat) -> Response:
    ask = service.begun(replace(ask, client=client_of(request), timeout_s=timeout_of(request)))
    record = record_of(request)
    record.model = ask.model
    exchange = _Exchange(service, body, ask, format, record, request.state.request_id)
    if not body.stream:
        return await while_connected(request, exchange.whole())
    async with AsyncExitStack() as accepted:
        # Entered before the stream starts, so that a request that is refused gets an error status instead of a stream.
        entering = accepted.enter_async_context(service.streaming(ask, request.state.request_id))
        prompter, deltas = await while_connected(request, entering)
        stack = accepted.pop_all()
    return EventStream(exchange.events(prompter, deltas), stack, service.limits.stream_comment_s)


class _Exchange:
    """One request and its response."""

    def __init__(
        self, service: Service, body: Generation, ask: Ask, format: ResponseFormat, record: Record, request_id: str
    ) -> None:
        self._service, self._body, self._ask, self._format, self._record = service, body, ask, format, record
        self._request_id = request_id
        self._warnings: dict[str, list[str]] = {}
        self._head = {
            "id": format.prefix + request_id,
            "object": format.chunk_kind if body.stream else format.kind,
            "created": int(time.time()),
            "model": ask.model,
        }

    async def whole(self) -> Response:
        """The response to a request without ``stream``."""
        async with self._service.keeping(self._ask):
            prompter, choices = await self._service.answer(self._ask, self._request_id)
            self._record.add(choices)
            thoughts = await self._thoughts(choices)
        return await json_response(self._pieces(prompter, choices, thoughts))

    async def _pieces(
        self, prompter: Prompter, choices: list[Choice], thoughts: list[list[DecodedThought] | None]
    ) -> AsyncIterator[bytes]:
        """The response as JSON: a piece for each choice, which is then let go."""
        usage = usage_of(choices, self._ask.samples)
        yield f'{dumps(self._head)[:-1]},"choices":['.encode()
        for number in range(len(choices)):
            choice, decoded = choices.pop(0), thoughts.pop(0)
            comma = "," if number else ""
            num_scores = len(choice.completion.scores) * (1 + (self._ask.num_likeliest or 0))
            if num_scores + len(decoded or ()) * self._ask.num_decoded > LARGE:
                written = await aside(self._written, prompter, choice, decoded)
            else:
                await asyncio.sleep(0)
                written = self._written(prompter, choice, decoded)
            yield (comma + written).encode()
        warnings = await warnings_of(prompter, self._ask.prompts)
        yield f"],{dumps({'usage': usage, **warnings})[1:]}".encode()

    def _written(self, prompter: Prompter, choice: Choice, decoded: list[DecodedThought] | None) -> str:
        """A choice as JSON."""
        written = {}
        if self._ask.num_likeliest is not None:
            written["logprobs"] = joined(self._logprobs(prompter, choice))
        if decoded is not None:
            written["thoughts"] = dumps(thoughts_of(decoded))
        return object_of(self._format.choice(choice, None), written)

    async def events(self, prompter: Prompter, deltas: AsyncIterator[Delta]) -> AsyncIterator[bytes]:
        """The response to a request with ``stream``, as server-sent events.

        If the request fails while it runs, the error is sent as the last event before the end mark.
        """
        unsent = _Unsent(prompter if self._ask.num_likeliest is not None else None)
        choices: dict[int, Choice] = {}
        self._warnings = await warnings_of(prompter, self._ask.prompts)
        try:
            async for delta in deltas:
                # Lets other requests go on, also while events wait and the client reads as fast as they are written.
                await asyncio.sleep(0)
                unsent.take(delta)
                if delta.thought is not None:
                    continue
                if delta.index not in unsent.begun:
                    unsent.begun.add(delta.index)
                    async for opening in self._opening(delta.index, unsent, prompter):
                        yield opening
                if delta.text or delta.choice is not None:
                    reason = None if delta.choice is None else delta.choice.finish_reason
                    scored = unsent.scored_with(delta)
                    logprobs = None if scored is None else self._format.logprobs(scored)
                    yield self._chunk(self._format.chunk(delta.index, delta.text, logprobs, reason))
                if delta.choice is not None:
                    choices[delta.index] = delta.choice
                    self._record.add([delta.choice])
            if self._body.wants_usage:
                ordered = [choices[index] for index in sorted(choices)]
                yield event({**self._head, "choices": [], "usage": usage_of(ordered, self._ask.samples)})
        except ServiceError as error:
            yield event(body_of(error))
        yield END

    async def _opening(self, index: int, unsent: "_Unsent", prompter: Prompter) -> AsyncIterator[bytes]:
        """The events before a continuation's first text: the role of a chat message, and decoded thoughts."""
        first = self._format.first(index)
        if first is not None:
            yield self._chunk(first)
        if top_k := self._body.top_k_of_thoughts:
            states = unsent.thoughts.pop(index, [])
            stacked = torch.stack(states) if states else torch.zeros(0)
            with self._service.keeping_that_of(prompter, self._ask.model):
                decoded = await self._service.decode_thoughts(self._ask, stacked, top_k)
            yield self._chunk({**self._format.chunk(index, "", None, None), "thoughts": thoughts_of(decoded)})

    def _chunk(self, choice: dict[str, Any]) -> bytes:
        usage = {"usage": None} if self._body.wants_usage else {}
        # With the first chunk only.
        warnings, self._warnings = self._warnings, {}
        return event({**self._head, "choices": [choice], **usage, **warnings})

    async def _thoughts(self, choices: list[Choice]) -> list[list[DecodedThought] | None]:
        """Decoded thoughts of each choice; None if the request does not ask for thoughts."""
        top_k = self._body.top_k_of_thoughts
        if not top_k:
            return [None] * len(choices)
        shown: list[list[DecodedThought] | None] = []
        for choice in choices:
            thoughts = choice.completion.thoughts
            assert thoughts is not None
            decoded = await self._service.decode_thoughts(self._ask, thoughts, top_k)
            shown.append(decoded)
        return shown

    def _logprobs(self, prompter: Prompter, choice: Choice) -> Iterator[dict[str, Any]]:
        """The log probabilities of a choice, of a few tokens at a time."""
        # The end-of-sequence token is not part of the text.
        scores = zip(choice.completion.tokens, choice.completion.scores, strict=True)
        shown = ((token, score) for token, score in scores if token not in prompter.eos_ids)
        text = ScoredText(prompter)
        scored = (text.add(token, score) for token, score in shown)
        yield self._format.logprobs([])
        while some := list(islice(scored, NUM_AT_ONCE)):
            yield self._format.logprobs(within(some, len(choice.text)))


class _Unsent:
    """Thoughts and token scores of a stream that have arrived but have not been sent."""

    def __init__(self, prompter: Prompter | None) -> None:
        """``prompter``: names the tokens whose scores are sent; None: no scores are sent."""
        self._prompter = prompter
        self.begun: set[int] = set()
        """Indices of continuations whose first chunks have been sent."""
        self.thoughts: dict[int, list[torch.Tensor]] = {}
        """By index of the continuation: states [D] of its thoughts."""
        self._texts: dict[int, ScoredText] = {}
        self._scored: dict[int, list[ScoredToken]] = {}
        self._num_sent: dict[int, int] = {}
        """By index of the continuation: number of characters sent."""

    def take(self, delta: Delta) -> None:
        """Stores the thought and the score of a delta."""
        if delta.thought is not None:
            self.thoughts.setdefault(delta.index, []).append(delta.thought.state)
        if self._prompter is None or delta.score is None or delta.token is None:
            return
        # The end-of-sequence token is not part of the text.
        if delta.token not in self._prompter.eos_ids:
            text = self._texts.setdefault(delta.index, ScoredText(self._prompter))
            self._scored.setdefault(delta.index, []).append(text.add(delta.token, delta.score))

    def scored_with(self, delta: Delta) -> list[ScoredToken] | None:
        """Returns the tokens that begin in the text of a delta, all remaining ones with the last; None: not wanted."""
        num_sent = self._num_sent[delta.index] = self._num_sent.get(delta.index, 0) + len(delta.text)
        if self._prompter is None:
            return None
        waiting = self._scored.pop(delta.index, [])
        if delta.choice is not None:
            return within(waiting, num_sent)
        self._scored[delta.index] = [one for one in waiting if one.offset >= num_sent]
        return [one for one in waiting if one.offset < num_sent]
