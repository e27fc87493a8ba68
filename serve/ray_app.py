"""The server as an autoscaled Ray Serve deployment (extra ``ray``). Replicas share no state.

    serve run serve.ray_app:build checkpoints=outputs max_replicas=4

Ray's proxy listens on 127.0.0.1:8000 by default. The API key is the environment variable ``COCONUT_API_KEY`` of the
replicas.
"""

from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel, ConfigDict, Field, field_validator
from ray import serve as ray_serve
from ray.serve import Application

from serve.api.app import create_app
from serve.clients.access import Access
from serve.clients.keys import read_keys
from serve.launch import load, make_service
from serve.limits import EngineSettings, Limits


class Options(BaseModel):
    """The options that ``serve run`` takes as ``key=value``."""

    model_config = ConfigDict(extra="forbid")

    checkpoints: list[str] = Field(min_length=1)
    """Like ``--checkpoint`` of ``python -m serve api``; on the command line separated by commas."""
    slots: int = EngineSettings.slots
    max_positions: int = EngineSettings.max_positions
    dtype: str = EngineSettings.dtype
    tf32: bool = EngineSettings.tf32
    memory_gb: float | None = None
    """Memory per replica for the weights and caches of all its loaded models, in GB (1e9 bytes)."""
    min_replicas: int = 1
    max_replicas: int = 4
    cpus: float = 1.0
    """CPUs per replica."""
    gpus: float = 0.0
    """GPUs per replica."""

    @field_validator("checkpoints", mode="before")
    @classmethod
    def _split(cls, value: Any) -> Any:
        return value.split(",") if isinstance(value, str) else value


class Replica:
    """One replica: the service and its HTTP layer, without the server process of ``serve.network.server``."""

    def __init__(self, options: Options) -> None:
        settings = EngineSettings(options.slots, options.max_positions, options.dtype, tf32=options.tf32)
        budget = None if options.memory_gb is None else int(options.memory_gb * 1e9)
        self.service, self.metrics = make_service(options.checkpoints, settings, Limits(), budget)
        load(self.service, self.service.models.checkpoints.names[0])

    def __serve_build_asgi_app__(self) -> FastAPI:
        return create_app(self.service, self.metrics, Access(read_keys(None)))

    def check_health(self) -> None:
        """Called by Ray, which replaces the replica if this raises."""
        if self.service.problems:
            raise RuntimeError(f"models that cannot be used: {self.service.problems}")

    def __del__(self) -> None:
        service = getattr(self, "service", None)
        if service is not None:
            service.close()


def build(options: Options) -> Application:
    """Builds the application; Ray fills ``options`` from the command line or a configuration file."""
    limits = Limits()
    deployment = ray_serve.deployment(
        ray_serve.ingress()(Replica),
        name="coconut",
        # A replica limits its own queue; Ray adds replicas when all slots are in use on average.
        max_ongoing_requests=options.slots + limits.max_waiting,
        autoscaling_config={
            "min_replicas": options.min_replicas,
            "max_replicas": options.max_replicas,
            "target_ongoing_requests": options.slots,
        },
        graceful_shutdown_timeout_s=limits.drain_s,
        ray_actor_options={"num_cpus": options.cpus, "num_gpus": options.gpus},
    )
    return deployment.bind(options)
