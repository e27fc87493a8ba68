"""Loaded models. A model is loaded when it is first requested; when memory runs short, unused models are unloaded.

All loaded models together stay within a memory budget (``Room``): the least recently used models that no caller holds
are unloaded first. Each model is loaded on a thread of its own, once for all callers that wait for it, so that a
checkpoint that takes long or cannot be loaded delays only its own callers. When a checkpoint's files have changed, it
is loaded anew; callers that hold the old model finish with it.
"""

import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from coconut_ds.model.precision import use_tf32
from coconut_ds.reasoner import Reasoner
from serve.checkpoints.finding import ServedCheckpoint
from serve.checkpoints.offered import Checkpoints
from serve.engine.jobs import Observer
from serve.engine.model_thread import ModelThread
from serve.errors import CheckpointFailedError, ServiceError, UnavailableError
from serve.limits import EngineSettings, Limits
from serve.models.loading import load_model
from serve.models.loads import Failures, Waiters, Waiting, again, stopping, vanished
from serve.models.memory import default_budget, device_of
from serve.models.room import Loaded, Room

log = logging.getLogger("serve")
CLOSE_S = 2.0
"""Seconds that the threads of all models may take to end when the server stops."""
TRIES = 2
"""How often a model is loaded if its files change meanwhile."""


class Models:
    """Loads and unloads models, which are named after their checkpoints. Any thread may call the methods."""

    def __init__(
        self,
        checkpoints: Checkpoints,
        settings: EngineSettings,
        max_waiting: int,
        budget_bytes: int | None = None,
        observer: Callable[[str], Observer] | None = None,
        client_room: int = Limits.client_room,
    ) -> None:
        """
        Args:
            checkpoints: the checkpoints that can be loaded.
            settings: slots, positions, dtype and device of every model.
            max_waiting: maximum number of completions per model that may wait for a slot.
            budget_bytes: memory that the weights and caches of all loaded models may take together; None: see
                ``default_budget``.
            observer: given a model's name, returns the observer of its requests.
            client_room: see ``Limits.client_room``.
        """
        self.checkpoints, self.settings = checkpoints, settings
        note = use_tf32("--tf32", settings.tf32, settings.dtype != "float32", device_of(settings))
        if note is not None:
            log.info("%s", note)
        self.budget_bytes = default_budget(settings) if budget_bytes is None else budget_bytes
        self._max_waiting, self._observer, self._client_room = max_waiting, observer, client_room
        self._loaded: OrderedDict[str, Loaded] = OrderedDict()
        """By name, the least recently used first."""
        self._held: dict[ModelThread, Loaded] = {}
        """All models in memory, also those that are about to leave it."""
        self._lock = threading.RLock()
        self._room = Room(self.budget_bytes, self._lock, self._loaded, self._held)
        self._waiters, self._failures = Waiters(), Failures()
        self._closing = False
        checkpoints.on_change = self._retire_vanished

    @property
    def loaded(self) -> dict[str, ModelThread]:
        """Threads of the loaded models by name, the least recently used first."""
        with self._lock:
            return {name: one.thread for name, one in self._loaded.items()}

    @property
    def threads(self) -> list[ModelThread]:
        """Threads of all models in memory, also of those that leave it once their last callers are done."""
        with self._lock:
            return list(self._held)

    @property
    def used_bytes(self) -> int:
        """Memory of the budget that models take, or will take that are being loaded."""
        return self._room.used_bytes

    def hold_if_loaded(self, name: str) -> ModelThread | None:
        """Like ``hold``, but returns None if the model has to be loaded first. Does not block."""
        self.checkpoints.scan()
        with self._lock:
            one, checkpoint = self._loaded.get(name), self.checkpoints.get(name)
            if one is None or checkpoint is None or self._is_outdated(one, checkpoint):
                return None
            return self._hold(one)

    def hold_soon(self, name: str) -> Waiting:
        """Like ``hold``, but does not block: the future gets the thread, or the error.

        A caller that no longer wants the model cancels the future. If that fails, the caller holds the model, or will:
        ``future.add_done_callback(models.release_unwanted)`` then releases it.
        """
        waiting: Waiting = Waiting()
        if (thread := self.hold_if_loaded(name)) is not None:
            waiting.set_result(thread)
        elif self.checkpoints.get(name) is None:
            self.checkpoints.scan().add_done_callback(lambda _: self._wait(name, waiting))
        else:
            self._wait(name, waiting)
        return waiting

    def hold(self, name: str, timeout_s: float | None = None) -> ModelThread:
        """Keeps a model in memory until ``release`` is called, after loading it if necessary.

        Args:
            name: name of the model.
            timeout_s: seconds to wait for it at most; None: as long as it takes.

        Raises:
            TimeoutError: it was not loaded in time.
            UnknownModelError: no checkpoint has this name.
            QueueFullError: the models in use leave no memory for it.
            UnavailableError: it cannot be loaded, or the server is stopping.
        """
        waiting = self.hold_soon(name)
        try:
            return waiting.result(timeout_s)
        except TimeoutError:
            waiting.cancel()
            waiting.add_done_callback(self.release_unwanted)
            raise

    def release(self, thread: ModelThread) -> None:
        """Ends the ``hold`` of a model that returned this thread; once nothing holds it, it may be unloaded."""
        with self._lock:
            one = self._held.get(thread)
            if one is None:
                return
            one.holders -= 1
            leaves = not one.holders and self._loaded.get(one.checkpoint.name) is not one
        if leaves:
            self._room.unload_soon(one)

    def release_unwanted(self, waiting: Waiting) -> None:
        """Releases the model that a caller got that no longer waits for it; see ``hold_soon``."""
        if not waiting.cancelled() and waiting.exception() is None:
            self.release(waiting.result())

    @contextmanager
    def holding(self, name: str, timeout_s: float | None = None) -> Iterator[ModelThread]:
        """Holds a model during a ``with`` block: ``with models.holding(name) as thread``. Raises as ``hold`` does."""
        thread = self.hold(name, timeout_s)
        try:
            yield thread
        finally:
            self.release(thread)

    def stop_loading(self) -> None:
        """Fails all callers that wait for a model. Models that are being loaded are not kept."""
        with self._lock:
            self._closing = True
            waiting = self._waiters.take_all()
        for one in waiting:
            one.set_exception(stopping())

    def close(self) -> None:
        """Unloads all models and ends their threads, within ``CLOSE_S``."""
        self.stop_loading()
        with self._lock:
            models = list(self._held.values())
            self._loaded.clear()
            self._held.clear()
        for one in models:
            one.thread.stop()
        ends = time.monotonic() + CLOSE_S
        for one in models:
            if one.thread.close(max(0.0, ends - time.monotonic())):
                self._room.freed(one)

    def _hold(self, one: Loaded) -> ModelThread:
        self._loaded.move_to_end(one.checkpoint.name)
        one.holders += 1
        return one.thread

    def _is_outdated(self, one: Loaded, checkpoint: ServedCheckpoint) -> bool:
        """Whether the model's files have changed, and can be loaded as far as is known."""
        return one.checkpoint.mark != checkpoint.mark and self._failures.of(checkpoint) is None

    def _wait(self, name: str, waiting: Waiting) -> None:
        """Adds a caller to those of a model, and has the model loaded if this is the first one."""
        try:
            with self._lock:
                checkpoint = self.checkpoints[name]
                one, failure = self._loaded.get(name), self._failures.of(checkpoint)
                if self._closing:
                    raise stopping()
                if one is None and failure is not None:
                    raise again(failure)
                if one is None or self._is_outdated(one, checkpoint):
                    if self._waiters.add(name, waiting):
                        self._start_loading(name)
                    return
                thread = self._hold(one) if waiting.set_running_or_notify_cancel() else None
        except ServiceError as error:
            if waiting.set_running_or_notify_cancel():
                waiting.set_exception(error)
            return
        if thread is not None:
            waiting.set_result(thread)

    def _start_loading(self, name: str) -> None:
        try:
            threading.Thread(target=self._load_for, args=[name], name=f"load-{name}", daemon=True).start()
        except RuntimeError as error:
            log.error("%s cannot be loaded now: %s", name, error)
            self._waiters.forget(name)
            raise UnavailableError("model: no thread is free to load it; retry later", "model", 5) from error

    # On other threads

    def _load_for(self, name: str) -> None:
        """Loads a model, and answers all callers that wait for it. Runs on a thread of its own."""
        made: Loaded | None = None
        error: ServiceError | None
        try:
            made, error = self._try_to_load(name)
        except Exception:
            # Its callers must get an answer, whatever happens.
            log.exception("%s cannot be loaded", name)
            error = CheckpointFailedError(
                f"model: {name[:100]} cannot be loaded; the server's log has the reason", "model"
            )
        old = None
        with self._lock:
            waiting = self._waiters.take(name)
            if made is not None:
                self._room.take_over(made)
                self._held[made.thread] = made
                if not self._closing:
                    old = self._loaded.pop(name, None)
                    self._loaded[name] = made
            one = self._loaded.get(name)
            if isinstance(error, CheckpointFailedError) and one is not None:
                log.warning("%s: requests still get the model that was loaded before its files changed", name)
                error = None
            if error is None and one is not None:
                one.holders += len(waiting)
        for each in waiting:
            if error is None and one is not None:
                each.set_result(one.thread)
            else:
                each.set_exception(stopping() if error is None else again(error))
        for leaving in (old, made if one is not made else None):
            if leaving is not None and not leaving.holders:
                self._room.unload(leaving)

    def _try_to_load(self, name: str) -> tuple[Loaded | None, ServiceError | None]:
        """The model, or why it cannot be loaded."""
        error: ServiceError | None = None
        for _ in range(TRIES):
            checkpoint = self.checkpoints.get(name)
            if checkpoint is None:
                return None, vanished(name)
            try:
                return load_model(checkpoint, self.settings, self._room, self._start), None
            except CheckpointFailedError as raised:
                error = raised
            except ServiceError as raised:
                return None, raised
            # Its files may have been replaced or removed while they were read.
            self.checkpoints.refresh()
            now = self.checkpoints.get(name)
            if now is not None and now.mark == checkpoint.mark:
                break
        with self._lock:
            if checkpoint is not None and error is not None:
                self._failures.add(checkpoint, error)
        return None, error

    def _start(self, name: str, reasoner: Reasoner) -> ModelThread:
        observer = self._observer(name) if self._observer is not None else None
        return ModelThread(reasoner, self.settings, self._max_waiting, observer, self._client_room)

    def _retire_vanished(self) -> None:
        """Unloads the models of checkpoints that have vanished, once nothing holds them."""
        with self._lock:
            gone = [one for name, one in self._loaded.items() if self.checkpoints.get(name) is None]
            for one in gone:
                del self._loaded[one.checkpoint.name]
            unused = [one for one in gone if not one.holders]
        for one in unused:
            self._room.unload_soon(one)
