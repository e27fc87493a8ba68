"""``POST /v1/thoughts``: answers a question and decodes each thought on the way to the answer."""

from collections.abc import AsyncIterator
from dataclasses import asdict, replace
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from coconut_ds.probing.trace import ThoughtTrace, ThoughtView
from serve.api.bodies import JsonRoute
from serve.api.completions import ERROR_RESPONSES
from serve.api.guards import client_of
from serve.api.pieces import dumps
from serve.api.records import record_of
from serve.api.responses import WARNINGS, ResponseModel, Usage, usage_of, warnings_of
from serve.api.schema import TOP_K, ThoughtsRequest
from serve.api.streams import json_response, while_connected
from serve.api.timeouts import timeout_of
from serve.aside import aside
from serve.requests.service import Service
from serve.requests.tracing import trace_request


class TraceTimings(ResponseModel):
    """Milliseconds spent on waiting for a slot and encoding the prompt (``prefill``), on thoughts, and on the text."""

    prefill: float
    thoughts: float
    text: float


class TraceResponse(ResponseModel):
    """A trace. Thoughts are numbered from 1 and have the fields of ``ThoughtView`` in ``coconut_ds.probing.trace``."""

    id: str
    object: str
    model: str
    question: str
    method: str
    thoughts: list[dict[str, Any]]
    text: str
    answer: str
    finish_reason: str
    timings_ms: TraceTimings
    usage: Usage
    warnings: list[str] = WARNINGS


def routes(service: Service) -> APIRouter:
    """The route."""
    router = APIRouter(prefix="/v1", tags=["thoughts"], responses=ERROR_RESPONSES, route_class=JsonRoute)

    @router.post("/thoughts", response_model=TraceResponse, summary="Answers a question and decodes its thoughts")
    async def think(body: ThoughtsRequest, request: Request) -> Response:
        top_k, tokens = body.top_k or TOP_K, body.tokens or []
        ask = replace(body.to_ask(), client=client_of(request), timeout_s=timeout_of(request))
        record = record_of(request)
        record.model = ask.model
        found = await while_connected(request, trace_request(service, ask, top_k, tokens, request.state.request_id))
        choice, times = found.choice, found.choice.times
        record.add([choice])
        timings = {
            "prefill": times.encoded - times.submitted,
            "thoughts": max(times.thought - times.encoded, 0.0),
            "text": times.done - max(times.thought, times.encoded),
        }
        head = {"id": f"trace-{request.state.request_id}", "object": "thoughts.trace", "model": body.model}
        tail = {
            "timings_ms": {name: round(seconds * 1e3, 3) for name, seconds in timings.items()},
            "usage": usage_of([choice], 1),
            **await warnings_of(found.prompter, ask.prompts[:1]),
        }
        return await json_response(_pieces(head, found.trace, bool(body.layers), tail))

    return router


async def _pieces(
    head: dict[str, Any], trace: ThoughtTrace, layers: bool, tail: dict[str, Any]
) -> AsyncIterator[bytes]:
    """The response as JSON: a piece for each thought."""
    fields = {**head, **replace(trace, thoughts=()).as_dict(), **tail}
    place = list(fields).index("thoughts")
    before, after = dict(list(fields.items())[:place]), dict(list(fields.items())[place + 1 :])
    yield f'{dumps(before)[:-1]},"thoughts":['.encode()
    for number, thought in enumerate(trace.thoughts):
        yield b"," * bool(number) + await aside(_written, thought, layers)
    yield f"],{dumps(after)[1:]}".encode()


def _written(thought: ThoughtView, layers: bool) -> bytes:
    """A thought as JSON."""
    values = asdict(thought if layers else replace(thought, layers=()))
    if not layers:
        del values["layers"]
    return dumps(values).encode()
