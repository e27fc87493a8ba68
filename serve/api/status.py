"""Routes that report on the server: ``/v1/models``, ``/health``, ``/live``, ``/ready``, ``/metrics``, ``/version``."""

import platform
from typing import Any

import torch
import transformers
from fastapi import APIRouter
from fastapi.responses import JSONResponse, PlainTextResponse
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from pydantic import Field
from starlette.responses import Response

import coconut_ds
from coconut_ds.methods import METHODS
from serve.api.responses import ErrorResponse, ResponseModel
from serve.checkpoints.finding import ServedCheckpoint
from serve.monitoring.metrics import Metrics
from serve.requests.service import Service


class ModelResponse(ResponseModel):
    """A checkpoint that requests can name."""

    id: str
    object: str
    created: int
    owned_by: str
    method: str
    stage: int
    n_thoughts: int
    thinks: bool
    """Whether its method uses thoughts or pauses."""
    loaded: bool


class ModelsResponse(ResponseModel):
    """All checkpoints."""

    object: str
    data: list[ModelResponse]


class HealthResponse(ResponseModel):
    """``status`` is ``ok``, ``draining`` or ``unhealthy``."""

    status: str
    problems: dict[str, str] = Field({}, description="Models that cannot be used, with the reason for each")


class LiveResponse(ResponseModel):
    """The process answers."""

    status: str


class VersionResponse(ResponseModel):
    """Versions of the software that results may depend on."""

    version: str
    torch: str
    transformers: str
    python: str


def routes(service: Service, metrics: Metrics) -> APIRouter:
    """The routes."""
    router = APIRouter(tags=["status"], responses={401: {"model": ErrorResponse}})

    @router.get("/v1/models", response_model=ModelsResponse, summary="Lists all checkpoints")
    async def models() -> dict[str, Any]:
        await service.models.checkpoints.up_to_date()
        loaded = service.models.loaded
        data = [_described(checkpoint, checkpoint.name in loaded) for checkpoint in service.models.checkpoints]
        return {"object": "list", "data": data}

    @router.get(
        "/v1/models/{model:path}",
        response_model=ModelResponse,
        responses={404: {"model": ErrorResponse}},
        summary="Describes one checkpoint",
    )
    async def model(model: str) -> dict[str, Any]:
        await service.models.checkpoints.up_to_date()
        return _described(service.models.checkpoints[model], model in service.models.loaded)

    def state() -> Response:
        problems = service.problems
        status = "draining" if service.draining else "unhealthy" if problems else "ok"
        return JSONResponse({"status": status, "problems": problems}, 200 if status == "ok" else 503)

    @router.get(
        "/health",
        response_model=HealthResponse,
        responses={503: {"model": HealthResponse}},
        summary="Tells whether the server accepts requests, like /ready",
    )
    async def health() -> Response:
        return state()

    @router.get("/live", response_model=LiveResponse, summary="Answers as long as the process does")
    async def live() -> dict[str, str]:
        return {"status": "ok"}

    @router.get(
        "/ready",
        response_model=HealthResponse,
        responses={503: {"model": HealthResponse}},
        summary="Tells whether the server accepts requests",
    )
    async def ready() -> Response:
        return state()

    @router.get("/metrics", response_class=PlainTextResponse, summary="Metrics for Prometheus")
    async def prometheus() -> Response:
        return Response(generate_latest(metrics.registry), media_type=CONTENT_TYPE_LATEST)

    @router.get("/version", response_model=VersionResponse)
    async def version() -> dict[str, str]:
        return {
            "version": coconut_ds.__version__,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "python": platform.python_version(),
        }

    return router


def _described(checkpoint: ServedCheckpoint, is_loaded: bool) -> dict[str, Any]:
    """A checkpoint in the format of ``ModelResponse``."""
    card = checkpoint.card
    return {
        "id": checkpoint.name,
        "object": "model",
        "created": checkpoint.created,
        "owned_by": "coconut-ds",
        "method": card.method,
        "stage": card.stage,
        "n_thoughts": card.num_latents,
        "thinks": METHODS[card.method].has_latents,
        "loaded": is_loaded,
    }
