"""Functions that run on a model's thread, part by part. Their callers take turns, by the time that each has used."""

import logging
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, Generic, TypeVar

import torch

from coconut_ds.parts import Parts
from coconut_ds.reasoner import Reasoner
from serve.clients.client import Client
from serve.engine.shares import Shares
from serve.errors import ServiceError

log = logging.getLogger("serve")
Result = TypeVar("Result")


class Function(Generic[Result]):
    """A function whose parts have not all run."""

    def __init__(self, begin: Callable[[Reasoner], Parts[Result]], client: Client) -> None:
        """``begin``: given the model, returns the parts; ``client``: who called it."""
        self._begin, self.client = begin, client
        self._parts: Parts[Result] | None = None
        self.future: Future[Result] = Future()
        """The result. If the caller cancels it, no further part runs."""
        self.needs: Future[Any] | None = None
        """What the next part waits for."""

    def run_part(self, reasoner: Reasoner) -> bool:
        """Runs the next part. Returns whether there are more."""
        if self.future.cancelled():
            self._close()
            return False
        try:
            with torch.no_grad():
                self._parts = self._begin(reasoner) if self._parts is None else self._parts
                self.needs = next(self._parts)
        except StopIteration as ended:
            if self.future.set_running_or_notify_cancel():
                self.future.set_result(ended.value)
            return False
        except Exception as error:
            self.fail(error)
            return False
        return True

    def fail(self, error: Exception) -> None:
        """Ends the function with an error."""
        self._close()
        if self.future.set_running_or_notify_cancel():
            self.future.set_exception(error)

    def _close(self) -> None:
        """Has the parts clean up. If that fails, the model's requests must not fail with it."""
        if self._parts is None:
            return
        try:
            self._parts.close()
        except Exception:
            log.exception("a function that was ended could not clean up")


class Functions:
    """The functions of one model whose parts have not all run. Used by the model's thread only."""

    def __init__(self, reasoner: Reasoner, wake: Callable[[], None]) -> None:
        """``wake``: called from another thread when a function that waited for something can go on."""
        self._reasoner, self._wake = reasoner, wake
        self._ready: dict[Client, deque[Function[Any]]] = {}
        """By client, the functions whose next part can run; the client whose last turn was longest ago comes first."""
        self._held: set[Function[Any]] = set()
        """Functions whose next part needs something that is not ready."""
        self._used: Shares[Client] = Shares()
        """Seconds that each client's parts took."""

    @property
    def can_run(self) -> bool:
        """Whether a part can run now."""
        self._release()
        return bool(self._ready)

    def add(self, function: Function[Any]) -> None:
        """Adds a function to those of its client, which take turns."""
        if function.client not in self._ready:
            self._ready[function.client] = deque()
            self._used.enter(function.client)
        self._ready[function.client].append(function)

    def run_part(self) -> None:
        """Runs one part of the next function of the client whose turn it is."""
        client = self._used.first(self._ready)
        functions = self._ready.pop(client)
        function = functions.popleft()
        if functions:
            self._ready[client] = functions
        began = time.perf_counter()
        has_more = function.run_part(self._reasoner)
        self._used.charge(client, time.perf_counter() - began)
        if has_more and function.needs is not None:
            self._held.add(function)
            function.needs.add_done_callback(lambda _: self._wake())
        elif has_more:
            self.add(function)

    def fail_all(self, error: ServiceError) -> None:
        """Ends all functions with an error."""
        waiting = [function for own in self._ready.values() for function in own]
        for function in [*waiting, *self._held]:
            function.fail(error)
        self._ready.clear()
        self._held.clear()

    def _release(self) -> None:
        """Lets functions go on that have what they waited for, or whose caller has stopped waiting."""
        for function in list(self._held):
            if function.future.cancelled() or function.needs is None or function.needs.done():
                self._held.remove(function)
                self.add(function)
