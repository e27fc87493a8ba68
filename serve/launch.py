"""Builds the service and starts the server, from parsed command-line options."""

import argparse
import gc
import logging
from collections.abc import Callable
from pathlib import Path

import torch
from starlette.types import ASGIApp

from coconut_ds.errors import CheckpointError
from coconut_ds.packages import needs
from serve.api.records import Record, write
from serve.checkpoints.offered import find_checkpoints
from serve.clients.access import Access
from serve.errors import ServiceError
from serve.limits import EngineSettings, Limits
from serve.models.pool import Models
from serve.monitoring.metrics import Metrics
from serve.network.server import run_server
from serve.network.settings import Network
from serve.requests.service import Service

log = logging.getLogger("serve")


def start(
    arguments: argparse.Namespace, settings: EngineSettings, limits: Limits, access: Access, network: Network
) -> None:
    """Finds the checkpoints and serves them until the process gets a signal.

    Raises:
        CheckpointError: a checkpoint is missing, incomplete or not safe to load.
        DataError: a file of ``--data`` does not contain problems.
    """
    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)
    budget = None if arguments.memory_gb is None else int(arguments.memory_gb * 1e9)
    service, metrics = make_service(arguments.checkpoint, settings, limits, budget, arguments.skip_refused)
    checkpoints = service.models.checkpoints
    log.info("%d checkpoints: %s", len(checkpoints.names), ", ".join(checkpoints.names[:20]))
    mounts = app_mounts(service, arguments.data) if arguments.app else None
    # When a model is unloaded, the garbage collector looks at all objects, during which nothing else runs. Those of the
    # imported libraries, a million of them, stay forever.
    gc.freeze()
    first = checkpoints.first_thinking if arguments.app else checkpoints.names[0]
    if arguments.load:
        load(service, first)
    elif arguments.app:
        try:
            load(service, first)
        except CheckpointError as error:
            # Not fatal: visitors may use other checkpoints, and get this error when they use this one.
            log.warning("%s", error)
    home = "/app" if arguments.command == "app" else None
    receivers: list[Callable[[Record], None]] = []
    if arguments.access_log or arguments.log_json:
        receivers.append(write)
    if not arguments.otel:
        run_server(service, metrics, access, network, mounts, receivers, home)
        return
    with needs("otel"):
        from serve.network.spans import Spans

        spans = Spans()
    try:
        run_server(service, metrics, access, network, mounts, [*receivers, spans.record], home)
    finally:
        spans.close()


def make_service(
    given: list[str],
    settings: EngineSettings,
    limits: Limits,
    budget_bytes: int | None = None,
    skip_refused: bool = False,
) -> tuple[Service, Metrics]:
    """Builds the service and its metrics, without loading a model.

    Args:
        given: values of ``--checkpoint`` options, see ``find_checkpoints``.
        settings: slots, positions, dtype and device of every model.
        limits: bounds of requests.
        budget_bytes: see ``Models``.
        skip_refused: see ``find_checkpoints``.

    Raises:
        CheckpointError: a checkpoint is missing, incomplete or not safe to load.
    """
    metrics = Metrics()
    checkpoints = find_checkpoints(given, skip_refused)
    models = Models(checkpoints, settings, limits.max_waiting, budget_bytes, metrics.observer, limits.guaranteed_room)
    metrics.watch(lambda: models.loaded)
    return Service(models, limits), metrics


def load(service: Service, name: str) -> None:
    """Loads a checkpoint in advance, so that no client waits for it.

    Raises:
        CheckpointError: the checkpoint cannot be loaded.
    """
    try:
        thread = service.models.hold(name)
    except ServiceError as error:
        raise CheckpointError(f"--load: {error}") from error
    service.models.release(thread)


def app_mounts(service: Service, data: list[Path]) -> dict[str, ASGIApp]:
    """The ASGI apps of the browser app, by the path at which each is mounted.

    Raises:
        DataError: a file of ``--data`` does not contain problems.
    """
    # Imported here because Gradio is slow to load and the API does not need it.
    with needs("serve"):
        from serve.app.layout import mounts
        from serve.app.problems import find_files
        from serve.app.studio import Studio

    files, file_of = find_files(data, service.models.checkpoints)
    return mounts(Studio(service, files, file_of))
