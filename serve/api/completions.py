"""``POST /v1/completions`` and ``POST /v1/chat/completions``: one course of events, written in two ways."""

import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

import torch
from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse
from starlette.responses import Response

from coconut_ds.generation.prompter import Prompter
from coconut_ds.generation.requests import Score
from serve.api.answers import (
    Chat,
    ChatAnswer,
    CompletionAnswer,
    Completions,
    ErrorAnswer,
    Speaker,
    thoughts_of,
    usage_of,
)
from serve.api.errors import body_of
from serve.api.schema import ChatRequest, CompletionRequest, Generation
from serve.api.streams import END, EventStream, event, while_connected
from serve.asking import Ask
from serve.errors import ServiceError
from serve.service import Choice, Delta, Service

REFUSALS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorAnswer} for status in (400, 401, 404, 408, 413, 429, 500, 503, 504)
}


def routes(service: Service) -> APIRouter:
    """The two routes."""
    router = APIRouter(prefix="/v1", tags=["OpenAI"], responses=REFUSALS)

    @router.post("/completions", response_model=CompletionAnswer, summary="Continues questions")
    async def complete(body: CompletionRequest, request: Request) -> Response:
        return await _respond(service, request, body, body.to_ask(), Completions())

    @router.post("/chat/completions", response_model=ChatAnswer, summary="Answers the messages, joined by newlines")
    async def chat(body: ChatRequest, request: Request) -> Response:
        return await _respond(service, request, body, body.to_ask(), Chat())

    return router


async def _respond(service: Service, request: Request, body: Generation, ask: Ask, speaker: Speaker) -> Response:
    exchange = _Exchange(service, body, ask, speaker, request.state.request_id)
    if not body.stream:
        return JSONResponse(await while_connected(request, exchange.whole()))
    stack = AsyncExitStack()
    # Entered here: who is not let in gets a status, and no stream.
    prompter, pieces = await stack.enter_async_context(service.streaming(ask, request.state.request_id))
    return EventStream(exchange.events(prompter, pieces), stack)


class _Exchange:
    """One request and its answer."""

    def __init__(self, service: Service, body: Generation, ask: Ask, speaker: Speaker, request_id: str) -> None:
        self._service, self._body, self._ask, self._speaker = service, body, ask, speaker
        self._request_id = request_id
        self._head = {
            "id": speaker.prefix + request_id,
            "object": speaker.chunk_kind if body.stream else speaker.kind,
            "created": int(time.time()),
            "model": ask.model,
        }

    async def whole(self) -> dict[str, Any]:
        """The answer in one piece."""
        prompter, choices = await self._service.answer(self._ask, self._request_id)
        thoughts = await self._thoughts(choices)
        shown = []
        for choice, one in zip(choices, thoughts, strict=True):
            scored = list(zip(choice.completion.tokens, choice.completion.scores, strict=False))
            logprobs = self._logprobs(prompter, scored, 0) if self._ask.num_likeliest is not None else None
            shown.append({**self._speaker.choice(choice, logprobs), **({} if one is None else {"thoughts": one})})
        return {**self._head, "choices": shown, "usage": usage_of(choices, self._ask.samples)}

    async def events(self, prompter: Prompter, pieces: AsyncIterator[Delta]) -> AsyncIterator[bytes]:
        """The answer as server-sent events; an error in the middle is the last of them."""
        parts = _Parts(self._ask.num_likeliest is not None)
        choices: dict[int, Choice] = {}
        try:
            async for piece in pieces:
                parts.take(piece)
                if piece.thought is not None:
                    continue
                if piece.index not in parts.begun:
                    parts.begun.add(piece.index)
                    async for opening in self._opening(piece.index, parts):
                        yield opening
                if piece.text or piece.choice is not None:
                    reason = None if piece.choice is None else piece.choice.finish_reason
                    scored, offset = parts.scores_up_to(piece)
                    logprobs = self._logprobs(prompter, scored, offset) if parts.wants_scores else None
                    yield self._chunk(self._speaker.chunk(piece.index, piece.text, logprobs, reason))
                if piece.choice is not None:
                    choices[piece.index] = piece.choice
            if self._body.wants_usage:
                ordered = [choices[index] for index in sorted(choices)]
                yield event({**self._head, "choices": [], "usage": usage_of(ordered, self._ask.samples)})
        except ServiceError as error:
            yield event(body_of(error))
        yield END

    async def _opening(self, index: int, parts: "_Parts") -> AsyncIterator[bytes]:
        """What comes before a continuation's first text."""
        first = self._speaker.first(index)
        if first is not None:
            yield self._chunk(first)
        if top_k := self._body.top_k_of_thoughts:
            states = parts.thoughts.pop(index, [])
            stacked = torch.stack(states) if states else torch.zeros(0)
            decoded = await self._service.decode_thoughts(self._ask.model, stacked, top_k)
            yield self._chunk({**self._speaker.chunk(index, "", None, None), "thoughts": thoughts_of(decoded)})

    def _chunk(self, choice: dict[str, Any]) -> bytes:
        usage = {"usage": None} if self._body.wants_usage else {}
        return event({**self._head, "choices": [choice], **usage})

    async def _thoughts(self, choices: list[Choice]) -> list[list[dict[str, Any]] | None]:
        """Decoded thoughts of each choice; None where they are not wanted."""
        top_k = self._body.top_k_of_thoughts
        if not top_k:
            return [None] * len(choices)
        shown: list[list[dict[str, Any]] | None] = []
        for choice in choices:
            thoughts = choice.completion.thoughts
            assert thoughts is not None
            shown.append(thoughts_of(await self._service.decode_thoughts(self._ask.model, thoughts, top_k)))
        return shown

    def _logprobs(self, prompter: Prompter, scored: list[tuple[int, Score]], offset: int) -> dict[str, Any]:
        # The end of sequence is no text.
        shown = [(token, score) for token, score in scored if token not in prompter.eos_ids]
        return self._speaker.logprobs(prompter, shown, offset)


class _Parts:
    """What pieces have brought that was not sent yet."""

    def __init__(self, wants_scores: bool) -> None:
        self.wants_scores = wants_scores
        self.begun: set[int] = set()
        """Continuations of which something was sent."""
        self.thoughts: dict[int, list[torch.Tensor]] = {}
        self._scored: dict[int, list[tuple[int, Score]]] = {}
        self._shown: dict[int, int] = {}
        """Characters sent."""

    def take(self, piece: Delta) -> None:
        """Keeps a piece's thought and score."""
        if piece.thought is not None:
            self.thoughts.setdefault(piece.index, []).append(piece.thought.state)
        if piece.score is not None and piece.token is not None:
            self._scored.setdefault(piece.index, []).append((piece.token, piece.score))

    def scores_up_to(self, piece: Delta) -> tuple[list[tuple[int, Score]], int]:
        """Tokens whose scores go with a piece's text, and where that text begins."""
        offset = self._shown.get(piece.index, 0)
        self._shown[piece.index] = offset + len(piece.text)
        return self._scored.pop(piece.index, []), offset
