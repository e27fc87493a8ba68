"""What there is and how it fares: ``/v1/models``, ``/health``, ``/metrics``, ``/version``."""

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
from serve.api.answers import ErrorAnswer, ResponseModel
from serve.checkpoints import Entry
from serve.metrics import Metrics
from serve.service import Service


class ModelAnswer(ResponseModel):
    """A checkpoint."""

    id: str
    object: str
    created: int
    owned_by: str
    method: str
    stage: int
    n_thoughts: int
    thinks: bool
    """Whether its method has thoughts, or pauses."""
    loaded: bool


class ModelsAnswer(ResponseModel):
    """All checkpoints."""

    object: str
    data: list[ModelAnswer]


class HealthAnswer(ResponseModel):
    """``ok``, ``draining`` or ``unhealthy``."""

    status: str
    problems: dict[str, str] = Field({}, description="Models that cannot be used, and why")


class VersionAnswer(ResponseModel):
    """Versions that results may depend on."""

    version: str
    torch: str
    transformers: str
    python: str


def routes(service: Service, metrics: Metrics) -> APIRouter:
    """The routes."""
    router = APIRouter(tags=["status"], responses={401: {"model": ErrorAnswer}})

    @router.get("/v1/models", response_model=ModelsAnswer, summary="All checkpoints")
    async def models() -> dict[str, Any]:
        loaded = service.models.loaded
        data = [_described(entry, entry.name in loaded) for entry in service.models.catalogue]
        return {"object": "list", "data": data}

    @router.get(
        "/v1/models/{model:path}",
        response_model=ModelAnswer,
        responses={404: {"model": ErrorAnswer}},
        summary="One checkpoint",
    )
    async def model(model: str) -> dict[str, Any]:
        return _described(service.models.catalogue[model], model in service.models.loaded)

    @router.get("/health", response_model=HealthAnswer, responses={503: {"model": HealthAnswer}})
    async def health() -> Response:
        problems = service.problems
        status = "draining" if service.draining else "unhealthy" if problems else "ok"
        return JSONResponse({"status": status, "problems": problems}, 200 if status == "ok" else 503)

    @router.get("/metrics", response_class=PlainTextResponse, summary="For Prometheus")
    async def prometheus() -> Response:
        return Response(generate_latest(metrics.registry), media_type=CONTENT_TYPE_LATEST)

    @router.get("/version", response_model=VersionAnswer)
    async def version() -> dict[str, str]:
        return {
            "version": coconut_ds.__version__,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "python": platform.python_version(),
        }

    return router


def _described(entry: Entry, is_loaded: bool) -> dict[str, Any]:
    card = entry.card
    return {
        "id": entry.name,
        "object": "model",
        "created": entry.created,
        "owned_by": "coconut-ds",
        "method": card.method,
        "stage": card.stage,
        "n_thoughts": card.num_latents,
        "thinks": METHODS[card.method].has_latents,
        "loaded": is_loaded,
    }
