"""``POST /v1/thoughts``: what a model thinks on the way to an answer, thought by thought."""

from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse
from starlette.responses import Response

from serve.api.answers import ResponseModel, Usage, usage_of
from serve.api.completions import REFUSALS
from serve.api.schema import ThoughtsRequest
from serve.api.streams import while_connected
from serve.service import Service
from serve.tracing import trace_request


class TraceTimings(ResponseModel):
    """Milliseconds: waiting for a slot and encoding the prompt, thoughts, text."""

    prefill: float
    thoughts: float
    text: float


class TraceAnswer(ResponseModel):
    """A trace; its thoughts are as in ``coconut_ds.probing.trace``, numbered from 1."""

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


def routes(service: Service) -> APIRouter:
    """The route."""
    router = APIRouter(prefix="/v1", tags=["thoughts"], responses=REFUSALS)

    @router.post("/thoughts", response_model=TraceAnswer, summary="Thinks a question through, and shows how")
    async def think(body: ThoughtsRequest, request: Request) -> Response:
        found = await while_connected(
            request, trace_request(service, body.to_ask(), body.top_k, body.tokens, request.state.request_id)
        )
        choice, times = found.choice, found.choice.times
        values = found.trace.as_dict()
        if not body.layers:
            for thought in values["thoughts"]:
                del thought["layers"]
        timings = {
            "prefill": times.encoded - times.submitted,
            "thoughts": max(times.thought - times.encoded, 0.0),
            "text": times.done - max(times.thought, times.encoded),
        }
        return JSONResponse(
            {
                "id": f"trace-{request.state.request_id}",
                "object": "thoughts.trace",
                "model": body.model,
                **values,
                "timings_ms": {name: round(seconds * 1e3, 3) for name, seconds in timings.items()},
                "usage": usage_of([choice], 1),
            }
        )

    return router
