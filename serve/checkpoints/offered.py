"""The checkpoints that a server offers, by name. While it runs, it notices those that appear, change or vanish.

Requests never contain paths: a request can only name a checkpoint of this list.
"""

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path

from coconut_ds.errors import CheckpointError, CoconutError
from coconut_ds.files import shell_word
from serve.checkpoints.finding import Found, Mark, ServedCheckpoint, checked, folders_of, mark_of
from serve.errors import UnknownModelError

log = logging.getLogger("serve")
SCAN_S = 1.0
"""Shortest time between two looks at the folders, in seconds."""
SCAN_SHARE = 0.01
"""Largest share of a processor's time that looking at the folders may take."""
REPLACING_S = 0.1
"""Seconds after which a folder that has vanished is looked for once more: to replace a folder, programs rename the old
one, then the new one."""
WAIT_S = 2.0
"""Seconds that a request waits for a look at the folders, which a slow disk may hold up."""


class Checkpoints:
    """Checkpoints by name, in the order in which they were given."""

    def __init__(self, checkpoints: Sequence[ServedCheckpoint], given: Sequence[str] = ()) -> None:
        """
        Args:
            checkpoints: the checkpoints.
            given: the values of the options that they were found by; empty: they never change.

        Raises:
            CheckpointError: there is no checkpoint, or two have the same name.
        """
        self._by_name: dict[str, ServedCheckpoint] = {}
        for checkpoint in checkpoints:
            if checkpoint.name in self._by_name:
                other = self._by_name[checkpoint.name].folder
                raise CheckpointError(
                    f"--checkpoint {checkpoint.folder}: the name {checkpoint.name} is already taken by {other}; choose "
                    f"another: --checkpoint NAME={shell_word(checkpoint.folder)}"
                )
            self._by_name[checkpoint.name] = checkpoint
        if not self._by_name:
            raise CheckpointError("--checkpoint: found no complete checkpoint; give a model folder or a run's folder")
        self._given = tuple(given)
        self._refused: dict[Path, Mark] = {}
        """Folders that may not be served, and the state that their files had then."""
        self._lock, self._refreshing = threading.Lock(), threading.Lock()
        self._scan: Future[None] | None = None
        """The look at the folders that is going on."""
        self._next_scan = 0.0
        """Time of ``time.monotonic`` before which the folders are not looked at again."""
        self.on_change: Callable[[], None] = lambda: None
        """Called after the checkpoints have changed, on another thread."""

    def __iter__(self) -> Iterator[ServedCheckpoint]:
        return iter(self._by_name.values())

    @property
    def names(self) -> list[str]:
        """All names."""
        return list(self._by_name)

    @property
    def first_thinking(self) -> str:
        """Name of the checkpoint that the app selects initially.

        Of the checkpoints that think, or else of all, it is the best one of a complete run, with the highest validation
        accuracy; where no run is complete, the best one of a run; and where there is no run, the first in the order of
        the options and of names, since accuracies on different problems say nothing about each other.

        Raises:
            UnknownModelError: all checkpoints have vanished.
        """
        if not self._by_name:
            raise UnknownModelError("model: the checkpoints that this server was started with have vanished", "model")
        thinking = [one for one in self if one.card.num_thoughts] or list(self)
        return max(thinking, key=_worth).name

    def get(self, name: str) -> ServedCheckpoint | None:
        """The checkpoint with this name; None if there is none."""
        return self._by_name.get(name)

    def __getitem__(self, name: str) -> ServedCheckpoint:
        """
        Raises:
            UnknownModelError: no checkpoint has this name.
        """
        checkpoint = self._by_name.get(name)
        if checkpoint is None:
            raise UnknownModelError(
                f"model: no checkpoint is named {name[:100]!r}; GET /v1/models lists the names", "model"
            )
        return checkpoint

    def scan(self) -> "Future[None]":
        """Has the folders looked at again, on another thread, if the last look was long enough ago. Does not block.

        Returns:
            A future that is done when ``refresh`` has returned, and at once if no look is due.
        """
        with self._lock:
            if self._scan is not None:
                return self._scan
            future: Future[None] = Future()
            if not self._given or time.monotonic() < self._next_scan:
                future.set_result(None)
                return future
            self._scan = future
        try:
            threading.Thread(target=self._run_scan, args=(future,), name="checkpoints", daemon=True).start()
        except RuntimeError as error:
            log.error("the folders of checkpoints cannot be looked at now: %s", error)
            self._end_scan(future, time.monotonic() + SCAN_S)
        return future

    async def up_to_date(self) -> None:
        """Waits until the folders have been looked at (``scan``), but not longer than ``WAIT_S``."""
        scan = self.scan()
        if not scan.done():
            await asyncio.wait([asyncio.wrap_future(scan)], timeout=WAIT_S)

    def _run_scan(self, future: "Future[None]") -> None:
        began, computed = time.monotonic(), time.thread_time()
        try:
            self.refresh()
        except Exception:
            log.exception("the folders of checkpoints could not be looked at")
        now = time.monotonic()
        # A disk that needs long is left alone for as long.
        self._end_scan(future, now + max(SCAN_S, now - began, (time.thread_time() - computed) / SCAN_SHARE))

    def _end_scan(self, future: "Future[None]", next_scan: float) -> None:
        with self._lock:
            self._scan, self._next_scan = None, next_scan
        future.set_result(None)

    def refresh(self) -> None:
        """Looks at the folders again.

        New checkpoints get names as when the server starts, except that no checkpoint loses its name to another. A
        folder whose files have changed is checked again; if it may not be served any more, its checkpoint stays as it
        was, because a program may be writing to it.
        """
        if not self._given:
            return
        with self._refreshing:
            changed = self._refresh()
        if changed:
            self.on_change()

    def _refresh(self) -> bool:
        """Returns whether anything has changed."""
        found = self._folders()
        if not {one.folder for one in self} <= {one.folder for one in found}:
            time.sleep(REPLACING_S)
            found = self._folders()
        known = {one.folder: one for one in self}
        taken = {known[one.folder].name for one in found if one.folder in known}
        now: dict[str, ServedCheckpoint] = {}
        for each in found:
            old = known.get(each.folder)
            if old is None and each.name in taken:
                # Checked once the name is free.
                log.debug("%s: the name %s is taken", each.folder, each.name)
                continue
            checkpoint = self._checked_again(each, old)
            if checkpoint is not None:
                now[checkpoint.name] = checkpoint
                taken.add(checkpoint.name)
        self._refused = {one.folder: self._refused[one.folder] for one in found if one.folder in self._refused}
        before, self._by_name = self._by_name, now
        if before != now:
            _log_changes(before, now)
        return before != now

    def _folders(self) -> list[Found]:
        found = []
        for text in self._given:
            try:
                found += folders_of(text)
            except (CoconutError, OSError, RuntimeError) as error:
                # RuntimeError: links that lead back to themselves, up to Python 3.12.
                log.debug("%s", error)
        return found

    def _checked_again(self, found: Found, old: ServedCheckpoint | None) -> ServedCheckpoint | None:
        """The checkpoint in a folder, if it may be served; else the one that was there before, if any."""
        try:
            mark = mark_of(found.folder)
        except (OSError, RuntimeError):
            return old
        if old is not None and old.mark == mark:
            # A run may have a better checkpoint, or be complete, although the files of this one are the same.
            return old if old.standing == found.standing else replace(old, standing=found.standing)
        if self._refused.get(found.folder) == mark:
            return old
        try:
            new = checked(found if old is None else replace(found, name=old.name))
        except CheckpointError as error:
            self._refused[found.folder] = mark
            if old is not None:
                log.warning("%s has changed, and cannot be loaded any more: %s", old.name, error)
            else:
                log.warning("skipped a checkpoint: %s", error)
            return old
        self._refused.pop(found.folder, None)
        return new


def _worth(one: ServedCheckpoint) -> tuple[bool, bool, bool, float]:
    """Orders checkpoints: best ones of complete runs first, then best ones, then others of runs by accuracy."""
    if one.standing is None:
        return False, False, False, 0.0
    return one.is_best_of_run and one.standing.is_finished, one.is_best_of_run, True, one.accuracy or 0.0


def _log_changes(before: dict[str, ServedCheckpoint], now: dict[str, ServedCheckpoint]) -> None:
    for what, names in (
        ("appeared", [name for name in now if name not in before]),
        ("vanished", [name for name in before if name not in now]),
        ("changed", [name for name in now if name in before and now[name].mark != before[name].mark]),
    ):
        if names:
            log.info("%d checkpoints have %s: %s", len(names), what, ", ".join(names[:20]))


def find_checkpoints(given: Iterable[str], skip_refused: bool = False) -> Checkpoints:
    """Finds the checkpoints that ``--checkpoint`` options refer to.

    Args:
        given: each the path of a model folder, of a run's folder, or of a folder that contains runs or model folders,
            optionally preceded by ``NAME=``. Of runs, all complete checkpoints are taken, the newest first.
        skip_refused: skip a path with a warning where it would raise an error, if another one can be served.

    Raises:
        CheckpointError: a folder does not exist, is not safe to load, is damaged, or contains no complete checkpoint.
            If only some of a folder's checkpoints are unsafe or damaged, they are skipped with a warning.
    """
    texts, found = list(given), list[ServedCheckpoint]()
    for text in texts:
        try:
            found += _checkpoints_of(text)
        except CheckpointError as error:
            if not skip_refused:
                raise
            log.warning("skipped %s: %s", text, error)
    return Checkpoints(found, texts)


def _checkpoints_of(text: str) -> list[ServedCheckpoint]:
    """The checkpoints that one ``--checkpoint`` option refers to."""
    checkpoints, refused = [], []
    for found in folders_of(text):
        try:
            checkpoints.append(checked(found))
        except CheckpointError as error:
            if found.is_given:
                raise
            log.warning("skipped a checkpoint: %s", error)
            refused.append(error)
    if refused and not checkpoints:
        raise refused[0]
    return checkpoints
