"""The memory budget of all models, and which of them leave memory when another one needs it."""

import gc
import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from coconut_ds.errors import CheckpointError
from serve.checkpoints.finding import ServedCheckpoint
from serve.engine.model_thread import ModelThread
from serve.errors import QueueFullError

log = logging.getLogger("serve")
ENDS_S = 10.0
"""Seconds that the thread of a model may take to end before others no longer wait for it."""
LEAVING_S = 10.0
"""Seconds to wait for memory of models that are being unloaded."""


@dataclass(eq=False)
class Loaded:
    """A model in memory."""

    checkpoint: ServedCheckpoint
    thread: ModelThread
    num_bytes: int
    """Memory of its weights and its key/value cache."""
    holders: int = 0
    """Number of ``hold`` calls without their ``release``."""


class Room:
    """Divides the memory budget: among models in memory, those that are being loaded, and those that leave."""

    def __init__(
        self,
        budget_bytes: int,
        lock: threading.RLock,
        loaded: OrderedDict[str, Loaded],
        held: dict[ModelThread, Loaded],
    ) -> None:
        """
        Args:
            budget_bytes: memory of all models together.
            lock: protects ``loaded`` and ``held``.
            loaded: the models that callers can get, the least recently used first. Those that leave are taken out.
            held: all models in memory. Those whose threads have ended are taken out.
        """
        self._budget, self._loaded, self._held = budget_bytes, loaded, held
        self._changed = threading.Condition(lock)
        self._reserved: dict[str, int] = {}
        """Bytes for models that are being loaded, by name."""
        self._taken: dict[ModelThread, int] = {}
        """Bytes of models in memory, also of those that leave."""
        self._leaving: set[ModelThread] = set()

    @property
    def used_bytes(self) -> int:
        """Bytes that are taken or reserved."""
        with self._changed:
            return sum(self._reserved.values()) + sum(self._taken.values())

    def reserve(self, checkpoint: ServedCheckpoint, needed: int) -> None:
        """Reserves memory for a checkpoint, after unloading models that nothing holds, the least recently used first.

        Raises:
            CheckpointError: it needs more than the whole budget.
            QueueFullError: models in use leave no memory for it.
        """
        if needed > self._budget:
            raise CheckpointError(
                f"{checkpoint.folder}: weights and cache need {needed / 1e9:.2f} GB, but the memory budget is "
                f"{self._budget / 1e9:.2f} GB; raise --memory-gb, or lower --slots or --max-positions"
            )
        ends = time.monotonic() + LEAVING_S
        while (leaving := self._try(checkpoint.name, needed, may_wait=time.monotonic() < ends)) is not None:
            for one in leaving:
                log.info("%s: unloaded", one.checkpoint.name)
                self.unload(one)

    def _try(self, name: str, needed: int, may_wait: bool) -> list[Loaded] | None:
        """Reserves memory and returns None; or takes out and returns models that have to leave first.

        Returns an empty list after it has waited for models that are leaving already.
        """
        with self._changed:
            free = self._budget - self.used_bytes
            if free >= needed:
                self._reserved[name] = needed
                return None
            coming = free + sum(self._taken.get(thread, 0) for thread in self._leaving)
            chosen = []
            # An older version of the same checkpoint leaves first.
            for one in sorted(self._loaded.values(), key=lambda one: one.checkpoint.name != name):
                if coming < needed and not one.holders:
                    chosen.append(one)
                    coming += one.num_bytes
            if coming < needed or not (chosen or may_wait):
                raise QueueFullError(
                    "model: other models in use leave no memory for it; retry later", "model", retry_after_s=5
                )
            for one in chosen:
                del self._loaded[one.checkpoint.name]
                self._leaving.add(one.thread)
            if not chosen:
                self._changed.wait(1.0)
            return chosen

    def give_back(self, name: str) -> None:
        """Ends the reservation of a model that was not loaded."""
        with self._changed:
            self._reserved.pop(name, None)
            self._changed.notify_all()

    def take_over(self, one: Loaded) -> None:
        """Turns the reservation of a model into its memory."""
        with self._changed:
            self._reserved.pop(one.checkpoint.name, None)
            self._taken[one.thread] = one.num_bytes

    def unload_soon(self, one: Loaded) -> None:
        """Like ``unload``, on another thread."""
        _on_a_thread(self.unload, one)

    def unload(self, one: Loaded) -> None:
        """Ends a model's thread and frees its memory. Nothing holds it, and callers can no longer get it.

        If the thread does not end soon, its memory is freed later, once the thread has ended.
        """
        with self._changed:
            self._leaving.add(one.thread)
        if one.thread.close(ENDS_S):
            self.freed(one)
            return
        log.error("%s: its thread does not end yet; its memory stays in use until it does", one.checkpoint.name)
        _on_a_thread(self._free_later, one)

    def _free_later(self, one: Loaded) -> None:
        one.thread.close(None)
        log.info("%s: its thread has ended, and its memory is free", one.checkpoint.name)
        self.freed(one)

    def freed(self, one: Loaded) -> None:
        """Frees the memory of a model whose thread has ended."""
        with self._changed:
            self._held.pop(one.thread, None)
        gc.collect()
        with self._changed:
            self._taken.pop(one.thread, None)
            self._leaving.discard(one.thread)
            self._changed.notify_all()


def _on_a_thread(function: Callable[[Loaded], None], one: Loaded) -> None:
    """Calls a function that unloads a model, on a thread of its own."""
    try:
        threading.Thread(target=function, args=[one], name=f"unload-{one.checkpoint.name}", daemon=True).start()
    except RuntimeError as error:
        # The caller only ends a request, which must not fail because of this.
        log.error("%s: its memory stays in use, because it cannot be unloaded: %s", one.checkpoint.name, error)
        one.thread.stop()
