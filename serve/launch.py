"""From a command line to a server that runs."""

import argparse
import logging
from pathlib import Path

import torch
from starlette.types import ASGIApp

from coconut_ds.errors import CheckpointError
from serve.checkpoints import find_checkpoints
from serve.errors import ServiceError
from serve.limits import EngineSettings, Limits
from serve.metrics import Metrics
from serve.models import Models
from serve.server import run_server
from serve.service import Service

log = logging.getLogger("serve")


def start(arguments: argparse.Namespace, settings: EngineSettings, limits: Limits, key: str | None) -> None:
    """Finds the checkpoints and serves them until a signal comes.

    Raises:
        CheckpointError: one is not there, not whole or not safe.
    """
    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)
    budget = None if arguments.memory_gb is None else int(arguments.memory_gb * 1e9)
    service, metrics = make_service(arguments.checkpoint, settings, limits, budget)
    catalogue = service.models.catalogue
    log.info("%d checkpoints: %s", len(catalogue.names), ", ".join(catalogue.names[:20]))
    first = catalogue.first_thinking if arguments.app else catalogue.names[0]
    if arguments.load:
        load(service, first)
    elif arguments.app:
        try:
            load(service, first)
        except CheckpointError as error:
            # The visitor may want another one, and is told when asking for this.
            log.warning("%s", error)
    mounts = app_mounts(service, arguments.data) if arguments.app else None
    run_server(service, metrics, arguments.host, arguments.port, key, mounts)


def make_service(
    checkpoints: list[str], settings: EngineSettings, limits: Limits, budget_bytes: int | None = None
) -> tuple[Service, Metrics]:
    """A service for ``--checkpoint`` options; nothing is loaded yet.

    Raises:
        CheckpointError: one is not there, not whole or not safe.
    """
    metrics = Metrics()
    catalogue = find_checkpoints(checkpoints)
    models = Models(catalogue, settings, limits.max_waiting, budget_bytes, metrics.observer)
    metrics.watch(lambda: models.loaded)
    return Service(models, limits), metrics


def load(service: Service, name: str) -> None:
    """Loads a checkpoint, so that no client waits for it.

    Raises:
        CheckpointError: it cannot be loaded.
    """
    try:
        service.models.hold(name)
    except ServiceError as error:
        raise CheckpointError(f"--load: {error}") from error
    service.models.release(name)


def app_mounts(service: Service, data: list[Path]) -> dict[str, ASGIApp]:
    """The app, by path.

    Raises:
        DataError: a file of ``--data`` is no file of problems.
    """
    # Imported here: Gradio is slow to load, and the API does without.
    from serve.app.layout import mounts
    from serve.app.problems import find_files
    from serve.app.studio import Studio

    files, file_of = find_files(data, service.models.catalogue)
    return mounts(Studio(service, files, file_of))
