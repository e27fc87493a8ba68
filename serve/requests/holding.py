"""Holds the model that a request runs on, which may have to be loaded first, until the request's deadline."""

import asyncio
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from contextvars import ContextVar
from types import MappingProxyType

from serve.engine.deadlines import Deadline
from serve.engine.model_thread import ModelThread
from serve.errors import TimeLimitError
from serve.models.pool import Models

_kept: ContextVar[Mapping[str, ModelThread]] = ContextVar("kept", default=MappingProxyType({}))
"""Models that the current coroutine keeps, see ``keeping``."""


@contextmanager
def keeping(model: str, thread: ModelThread) -> Iterator[None]:
    """Within it, ``holding`` yields this thread to the current coroutine, also if the model's files change."""
    token = _kept.set({**_kept.get(), model: thread})
    try:
        yield
    finally:
        _kept.reset(token)


@asynccontextmanager
async def holding(models: Models, model: str, deadline: Deadline) -> AsyncIterator[ModelThread]:
    """Holds a model, which another thread loads if necessary.

    Raises:
        ServiceError: the model cannot be used, or the deadline has passed.
    """
    if (kept := _kept.get().get(model)) is not None:
        yield kept
        return
    thread = models.hold_if_loaded(model)
    if thread is None:
        waiting = models.hold_soon(model)
        try:
            async with deadline.limiting():
                thread = await asyncio.wrap_future(waiting)
        except (asyncio.CancelledError, TimeLimitError):
            waiting.add_done_callback(models.release_unwanted)
            raise
    try:
        yield thread
    finally:
        models.release(thread)


@contextmanager
def holding_now(models: Models, model: str, deadline: Deadline) -> Iterator[ModelThread]:
    """Like ``holding``, but blocks."""
    try:
        thread = models.hold(model, deadline.remaining_s)
    except TimeoutError:
        raise deadline.error() from None
    try:
        yield thread
    finally:
        models.release(thread)
