"""Ranks that work apart, without collectives, and still end together when one of them ends.

Collectives tell a rank that another one is gone only when it makes the next one, and then after a timeout of minutes.
Launchers end the other ranks, but not all of them do: ``srun`` without ``--kill-on-bad-exit`` leaves them running. So
each rank tells the others over the process group's store, once a second, that it is alive, and why it ends if it ends
early.
"""

import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from datetime import timedelta
from itertools import count
from types import TracebackType
from typing import Any, Self

import torch.distributed as dist

from coconut_ds.distributed.interrupts import EXIT_CODE, Interrupted
from coconut_ds.distributed.ranks import Ranks
from coconut_ds.errors import CoconutError
from coconut_ds.strict_json import parse_json

BEAT_S = 1.0
"""Seconds between two signs of life."""
SILENT_BEATS = 60
"""Number of beats after which a rank without a sign of life counts as dead."""
STARTING_BEATS = 600
"""Number of beats that a rank has for its first sign of life."""
GRACE_S = 30.0
"""Seconds for the main thread to notice that another rank has ended; then the process is ended where it waits."""
POLL_S = 0.05
"""Seconds between two looks at whether all ranks have reached a meeting."""
_uses = count()
"""Numbers the uses, which gives each one keys of its own in the store."""


class RankLost(Interrupted):
    """Another rank ended without a word: it was killed, or its machine is gone."""

    def __init__(self, rank: int) -> None:
        super().__init__(f"rank {rank} has ended or does not answer")
        # Rank 0 writes messages; if it is the one that is gone, the next one does.
        self.speaker = 1 if rank == 0 else 0


class Peers:
    """Within ``with Peers(ranks) as peers``, ranks notice that another one was interrupted, failed or died.

    The main thread asks with ``check`` and ``meet``. If it waits elsewhere, such as in a collective, the process is
    ended ``GRACE_S`` seconds later with the same message and exit code. All ranks use it together, equally often.
    """

    def __init__(self, ranks: Ranks) -> None:
        self._ranks = ranks
        self._closed = threading.Event()
        self._told: CoconutError | None = None
        self._meetings = count()
        # Rank 0 listens to all; the others listen to rank 0, which tells them what it hears.
        others = range(1, ranks.size) if ranks.is_first else [0]
        self._heard = dict.fromkeys(others, SILENT_BEATS - STARTING_BEATS)
        """For each rank that this one listens to: number of beats since it last heard from it."""

    def __enter__(self) -> Self:
        if self._ranks.size > 1:
            store: Any = dist.distributed_c10d._get_default_store()
            prefix = f"coconut_ds/peers/{next(_uses)}"
            # A client of its own for each thread: calls of one client wait for each other.
            self._store, beats = (dist.PrefixStore(prefix, store.clone()) for _ in range(2))
            threading.Thread(target=self._beat, args=(beats,), daemon=True).start()
            threading.Thread(target=self._guard, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closed.set()
        if error is None or self._ranks.size == 1:
            return
        lost = self.trouble()
        if lost is None and _is_connection_error(error):
            # The connection to another rank broke in a collective. Without more knowledge, it was to rank 0.
            lost = RankLost(next(iter(self._heard)))
        if self._ranks.is_first or not isinstance(lost, RankLost):
            _tell(self._store, lost or _as_told(error, self._ranks.rank))
        if lost is not None and not isinstance(error, CoconutError):
            raise lost from error

    def trouble(self) -> CoconutError | None:
        """Why this rank should end: what another rank has said, or that one is silent. None if all is well."""
        silent = [rank for rank, beats in self._heard.items() if beats >= SILENT_BEATS]
        return self._told or (RankLost(silent[0]) if silent else None)

    def check(self, note: Callable[[], str] = str) -> None:
        """Raises what ``trouble`` returns; about a rank that died, it adds a note.

        Raises:
            Interrupted: another rank was interrupted or has died.
            CoconutError: another rank has failed.
        """
        trouble = self.trouble()
        if isinstance(trouble, RankLost) and note():
            trouble.args = (f"{trouble}; {note()}",)
        if trouble is not None:
            raise trouble

    def meet(self, check: Callable[[], object]) -> None:
        """Waits, for any time, until all ranks have called it. ``check`` is called meanwhile and may raise."""
        if self._ranks.size == 1:
            return
        number = next(self._meetings)
        keys = [f"meeting/{number}/{rank}" for rank in range(self._ranks.size)]
        self._store.set(keys[self._ranks.rank], "")
        while not self._are_there(keys):
            check()
            time.sleep(POLL_S)

    def _are_there(self, keys: list[str]) -> bool:
        try:
            return self._store.check(keys)
        except dist.DistError:
            self._lose_store()
            return False

    def _lose_store(self) -> None:
        """The store has ended, with rank 0's process or with the launcher that started it."""
        self._heard[next(iter(self._heard))] = SILENT_BEATS

    def _beat(self, store: dist.Store) -> None:
        """Gives signs of life and listens to those of others; in a thread of its own, since the store may block."""
        last: dict[int, bytes] = {}
        try:
            store.set_timeout(timedelta(seconds=SILENT_BEATS * BEAT_S))
            for number in count():
                store.set(f"alive/{self._ranks.rank}", str(number))
                for rank, beat in _present(store, self._heard):
                    if last.get(rank) != beat:
                        last[rank], self._heard[rank] = beat, 0
                if store.check(["end"]):
                    self._told = self._told or _from_text(store.get("end"), self._ranks.rank)
                if self._closed.wait(BEAT_S):
                    return
        except dist.DistError:
            self._lose_store()

    def _guard(self) -> None:
        """Counts the silence of others, and ends this process if its main thread does not.

        It counts its own beats instead of reading a clock: processes that were all stopped for an hour have lost none.
        """
        while not self._closed.wait(BEAT_S):
            for rank in self._heard:
                self._heard[rank] += 1
            trouble = self.trouble()
            if trouble is not None and not self._closed.wait(GRACE_S):
                _tell(self._store, trouble)
                code = EXIT_CODE if isinstance(trouble, Interrupted) else 2
                sys.stderr.write(f"rank {self._ranks.rank} ends while it waits for another one: {trouble}\n")
                sys.stderr.flush()
                os._exit(code)


def _present(store: dist.Store, ranks: Iterable[int]) -> list[tuple[int, bytes]]:
    """The latest sign of life of each of these ranks that has given one."""
    there = [rank for rank in ranks if store.check([f"alive/{rank}"])]
    return list(zip(there, store.multi_get([f"alive/{rank}" for rank in there]), strict=True)) if there else []


def _is_connection_error(error: BaseException) -> bool:
    """Whether a collective has lost the connection to another rank; gloo names its source file in a RuntimeError."""
    return isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and "gloo/transport" in str(error))


def _tell(store: dist.Store, error: CoconutError) -> None:
    """Tells all ranks why this one ends. The first word counts, since the others end because of it."""
    text = {"interrupted": isinstance(error, Interrupted), "speaker": getattr(error, "speaker", 0), "text": str(error)}
    # If rank 0 is gone, the others notice by themselves.
    with suppress(dist.DistError):
        store.compare_set("end", "", json.dumps(text))


def _as_told(error: BaseException, rank: int) -> CoconutError:
    """An error of this rank, as the others report it."""
    if isinstance(error, Interrupted):
        return Interrupted(f"rank {rank} was interrupted: {error}")
    if isinstance(error, Exception):
        name = "" if isinstance(error, CoconutError) else f"{type(error).__name__}: "
        return CoconutError(f"rank {rank}: {name}{error}")
    return Interrupted(f"rank {rank} was interrupted: {type(error).__name__}")


def _from_text(text: bytes, rank: int) -> CoconutError:
    values: dict[str, Any] = parse_json(text.decode())
    if not values["interrupted"]:
        return CoconutError(values["text"])
    told = Interrupted(values["text"])
    told.speaker = values["speaker"]
    return told
