"""What loading models has to remember: who waits for which model, and which checkpoints could not be loaded."""

import time
from collections.abc import Callable
from concurrent.futures import Future

from serve.checkpoints.finding import Mark, ServedCheckpoint
from serve.engine.model_thread import ModelThread
from serve.errors import ServiceError, UnavailableError, UnknownModelError

REMEMBER_S = 60.0
"""Seconds after which a checkpoint that could not be loaded is tried again, although its files have not changed."""

Waiting = Future[ModelThread]
"""What a caller gets that waits for a model."""


class Waiters:
    """Callers that wait for models, by the models' names. The user holds a lock during each call."""

    def __init__(self) -> None:
        self._waiting: dict[str, list[Waiting]] = {}

    def add(self, name: str, waiting: Waiting) -> bool:
        """Adds a caller. Returns whether it is the first one of this model, which then has to be loaded."""
        others = self._waiting.setdefault(name, [])
        others.append(waiting)
        return len(others) == 1

    def take(self, name: str) -> list[Waiting]:
        """Removes the callers of a model; returns those that still wait. These can no longer be cancelled."""
        return [one for one in self._waiting.pop(name, []) if one.set_running_or_notify_cancel()]

    def forget(self, name: str) -> None:
        """Removes the callers of a model, who get their answers elsewhere."""
        self._waiting.pop(name, None)

    def take_all(self) -> list[Waiting]:
        """Like ``take``, for all models."""
        return [one for name in list(self._waiting) for one in self.take(name)]


def again(error: ServiceError) -> ServiceError:
    """The same error for another caller. A traceback refers to everything that the functions in it had in memory."""
    return type(error)(str(error), error.param, error.retry_after_s)


class Failures:
    """Checkpoints that could not be loaded, by name and state of files. The user holds a lock during each call."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._known: dict[tuple[str, Mark], tuple[float, ServiceError]] = {}

    def add(self, checkpoint: ServedCheckpoint, error: ServiceError) -> None:
        """Remembers a failure for a while."""
        now = self._clock()
        self._known = {key: value for key, value in self._known.items() if value[0] > now}
        self._known[checkpoint.name, checkpoint.mark] = (now + REMEMBER_S, again(error))

    def of(self, checkpoint: ServedCheckpoint) -> ServiceError | None:
        """Why the checkpoint could not be loaded; None if it has not been tried lately, or its files have changed."""
        until, error = self._known.get((checkpoint.name, checkpoint.mark), (0.0, None))
        return error if until > self._clock() else None


def stopping() -> UnavailableError:
    """The error of callers that wait for a model when the server stops."""
    return UnavailableError("the server is stopping", "model", retry_after_s=5)


def vanished(name: str) -> UnknownModelError:
    """The error of callers that wait for a model whose checkpoint has vanished meanwhile."""
    return UnknownModelError(
        f"model: the checkpoint {name[:100]!r} has vanished; GET /v1/models lists the others", "model"
    )
