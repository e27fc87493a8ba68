"""Loads one checkpoint. Blocks as long as that takes."""

import gc
import logging
import time
from collections.abc import Callable

import torch

from coconut_ds.errors import CheckpointError
from coconut_ds.reasoner import Reasoner, load_reasoner
from serve.checkpoints.finding import ServedCheckpoint
from serve.checkpoints.safety import check_folder
from serve.engine.model_thread import ModelThread
from serve.errors import CheckpointFailedError, ServiceError
from serve.limits import EngineSettings
from serve.models.loads import again
from serve.models.memory import needed_bytes
from serve.models.room import Loaded, Room

log = logging.getLogger("serve")


def load_model(
    checkpoint: ServedCheckpoint,
    settings: EngineSettings,
    room: Room,
    start: Callable[[str, Reasoner], ModelThread],
) -> Loaded:
    """Loads a checkpoint. Call it on a thread that ends afterwards.

    OpenMP keeps a pool of threads for every thread that has ever computed. With more of them than cores they stop
    busy-waiting for work, and the engine's passes over single positions take a fifth longer.

    Args:
        checkpoint: the checkpoint.
        settings: its dtype and device, and the size of its cache.
        room: the memory for it is reserved there, and given back if it cannot be loaded.
        start: given the name and the model, starts the model's thread.

    Raises:
        QueueFullError: see ``Room.reserve``.
        CheckpointFailedError: it cannot be loaded, or cannot run.
    """
    began, thread = time.perf_counter(), None
    failure: ServiceError | None = None
    try:
        # Checked again: the folder may have changed since the checkpoint was found.
        check_folder(checkpoint.folder, checkpoint.root)
        needed = needed_bytes(checkpoint.folder, settings)
        room.reserve(checkpoint, needed)
        reasoner = load_reasoner(checkpoint.folder, dtype=getattr(torch, settings.dtype), device=settings.device)
        thread = start(checkpoint.name, reasoner)
        # Copies the tokenizer for ``encode``, and waits until the model's thread runs.
        thread.run(lambda one: one.prompter.encode(["1"])).result()
    except ServiceError as error:
        failure = again(error)
        if thread is not None:
            log.error("%s was loaded, but cannot run: %s", checkpoint.name, error)
            failure = CheckpointFailedError(
                f"model: {checkpoint.name} cannot run; the server's log has the reason", "model"
            )
    except Exception as error:
        # Any exception may come: what a broken file makes the libraries raise is not known.
        is_gone = not checkpoint.folder.is_dir()
        reason = f"{checkpoint.folder} no longer exists" if is_gone else error
        is_known = is_gone or isinstance(error, (CheckpointError, FileNotFoundError))
        log.error("%s cannot be loaded: %s", checkpoint.name, reason, exc_info=None if is_known else error)
        failure = CheckpointFailedError(
            f"model: {checkpoint.name} cannot be loaded; the server's log has the reason", "model"
        )
    if failure is not None or thread is None:
        if thread is not None:
            thread.stop()
        room.give_back(checkpoint.name)
        # Frees what the load has left in reference cycles.
        gc.collect()
        assert failure is not None, "without a thread there is a failure"
        # Outside of the handlers, so that the error does not refer to what these functions had in memory.
        raise failure
    log.info("%s: loaded in %.1f s, %.2f GB", checkpoint.name, time.perf_counter() - began, needed / 1e9)
    return Loaded(checkpoint, thread, needed)
