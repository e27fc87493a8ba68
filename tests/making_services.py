"""Services with one model, for tests of what happens on the thread of a model."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

from serve.checkpoints.offered import find_checkpoints
from serve.engine.model_thread import ModelThread
from serve.limits import EngineSettings, Limits
from serve.models.pool import Models
from serve.requests.asking import Ask
from serve.requests.service import Service


def service_of(checkpoint: Path, slots: int = 4, **limits: float) -> Service:
    """A service of this checkpoint. ``limits``: fields of ``Limits``."""
    bounds = Limits(**limits)
    settings, checkpoints = EngineSettings(slots), find_checkpoints([str(checkpoint)])
    return Service(Models(checkpoints, settings, bounds.max_waiting, 10**9, None, bounds.guaranteed_room), bounds)


@contextmanager
def services(checkpoint: Path) -> Iterator[Callable[..., Service]]:
    """Makes services of this checkpoint (arguments: see ``service_of``), which are closed at the end."""
    with ExitStack() as stack:
        yield lambda slots=4, **limits: stack.enter_context(closing(service_of(checkpoint, slots, **limits)))


def thread_of(service: Service) -> ModelThread:
    """The thread of the service's model."""
    with service.models.holding("tiny") as thread:
        return thread


def hold_thread(thread: ModelThread, go_on: threading.Event) -> "Future[bool]":
    """Keeps a model's thread from its work until ``go_on`` is set, or for 20 s; returns once it is kept.

    If a test went on before, a forward pass could come first.
    """
    begun = threading.Event()
    held = thread.run(lambda reasoner: (begun.set(), go_on.wait(20))[1])
    assert begun.wait(20)
    return held


def ask_of(*prompts: str, **options: object) -> Ask:
    """A request of 8 tokens unless ``options``, fields of ``Ask``, say otherwise."""
    return Ask("tiny", prompts or ("hello",), **{"max_new_tokens": 8, **options})
