"""The metrics of a run: ``metrics.jsonl`` is the record, experiment trackers such as wandb are mirrors of it.

The file has one JSON object per line, with ``epoch`` (counted from 1), ``global_step`` (updates completed) and ``time``
(seconds since 1970). There are three kinds of lines:

* one per update: ``train/stage``, ``train/loss``, ``train/grad_norm``, ``train/lr``, ``perf/tokens_per_s``,
  ``perf/update_s``; with several parts of the loss ``train/loss_<part>``, and what else the objective measures;
* one per epoch, after validation: ``eval/stage``, ``eval/num_thoughts``, ``eval/num_pauses``, ``eval/loss``,
  ``eval/accuracy``, ``eval/wholly_right``, ``perf/epoch_s``, ``perf/eval_s``; if hops are measured,
  ``eval/hop_<i>_loss``, ``eval/hop_<i>_in_frontier``, ``eval/hop_<i>_mass``;
* one per stage switch under ``training.advance=accuracy``: ``curriculum/stage_switches``;
* one per switch of ``data.schedule``: ``data/switches``. Validations then have ``eval/data_phase``, counted from 0.

Two equal runs differ only in ``perf/*`` and ``time``.
"""

import json
import os
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Protocol, Self

from coconut_ds.errors import CheckpointError
from coconut_ds.runs.fencing import Fence
from coconut_ds.strict_json import parse_loosely


class Mirror(Protocol):
    """Another destination of the metrics, besides the file."""

    name: str
    """What warnings call it."""

    def log(self, values: dict[str, Any], step: int) -> None:
        """Receives the values of one line. ``step``: updates completed."""

    def close(self) -> None:
        """Called after the last line."""


class MetricsLog:
    """Appends lines to ``metrics.jsonl``. Each is flushed as it is written, so a killed process loses none.

    The run does not need the mirrors: if one fails, ``notify`` receives a warning, and the run goes on without it.
    """

    def __init__(
        self,
        path: Path,
        mirrors: Sequence[Mirror] = (),
        notify: Callable[[str], None] = lambda line: None,
        lost: Callable[[], bool] = lambda: False,
    ) -> None:
        """Opens the file.

        Args:
            path: the file; ``begin_metrics`` has prepared it.
            mirrors: the other destinations.
            notify: receives lines for the log.
            lost: whether another launch has taken over the run; from then on nothing is written.
        """
        self._file = path.open("a", encoding="utf-8")
        self._mirrors, self._notify, self._lost = list(mirrors), notify, lost

    @property
    def num_bytes(self) -> int:
        """Length of the file, in bytes."""
        return self._file.tell()

    def sync(self) -> None:
        """Flushes what was written to the disk."""
        os.fsync(self._file.fileno())

    def log(self, values: dict[str, Any]) -> None:
        """Writes one line. ``values`` must contain ``global_step``."""
        if self._lost():
            return
        self._file.write(json.dumps({**values, "time": round(time.time(), 3)}) + "\n")
        self._file.flush()
        self._with_mirrors(lambda mirror: mirror.log(values, int(values["global_step"])))

    def _with_mirrors(self, use: Callable[[Mirror], None]) -> None:
        for mirror in list(self._mirrors):
            try:
                use(mirror)
            except Exception as error:
                # A mirror is code of another project, whose errors have no common base.
                self._mirrors.remove(mirror)
                self._notify(
                    f"warning: {mirror.name} failed ({type(error).__name__}: {error}); metrics.jsonl has all metrics"
                )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._file.close()
        except OSError:
            # Closing retries a write that failed on a full disk; the error of the first attempt is already raised.
            if error is None:
                raise
        finally:
            self._with_mirrors(lambda mirror: mirror.close())


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """All whole lines of a ``metrics.jsonl``; the last one of a process that was killed may have no end.

    Raises:
        CheckpointError: a line is damaged.
    """
    found = []
    for number, line in enumerate(path.read_bytes().split(b"\n")[:-1], start=1):
        try:
            found.append(parse_loosely(line.decode(), number))
        except ValueError as error:
            raise CheckpointError(f"{path}: line {number} is damaged ({error}); remove the line") from error
    return found


def begin_metrics(path: Path, length: int, fence: Fence) -> Path | None:
    """Cuts a record to its length when a checkpoint was written, so that no update appears twice after a resume.

    The rest, lines of updates that will be repeated, is added to ``<name>.lost.jsonl``. Both become new files, so that
    a launch that has lost the run, and has the former ones open, changes neither.

    Args:
        path: a ``metrics.jsonl``; may be missing if ``length`` is 0.
        length: the length in bytes that the checkpoint recorded.
        fence: of the launch that will continue the record.

    Returns:
        The path of the file with the removed lines; None if nothing was removed.

    Raises:
        CheckpointError: the record is shorter than ``length``, or another launch has taken over the run.
    """
    there = path.stat().st_size if path.exists() else 0
    if there < length:
        raise CheckpointError(
            f"{path}: has {there} bytes, but had {length} when the checkpoint was written; metrics of this run are "
            "lost: restore the file, or start a new attempt with run.resume_mode=never"
        )
    kept = fence.part(path.name)
    rest = b""
    with kept.open("xb") as new:
        if there:
            with path.open("rb") as record:
                _copy(record, new, length)
                rest = record.read()
    lost = _add(path.with_suffix(".lost.jsonl"), rest, fence) if rest else None
    fence.put(kept, path)
    return lost


def _add(path: Path, rest: bytes, fence: Fence) -> Path:
    """Adds lines to a file, by replacing it."""
    part = fence.part(path.name)
    if path.exists():
        shutil.copyfile(path, part)
    with part.open("ab+") as tail:
        # A full disk or a killed process may have left a line without its end; the next one starts on a new line.
        if tail.tell():
            tail.seek(-1, os.SEEK_END)
            tail.write(b"" if tail.read() == b"\n" else b"\n")
        tail.write(rest)
    fence.put(part, path)
    return path


def _copy(source: IO[bytes], target: IO[bytes], length: int) -> None:
    while length and (piece := source.read(min(length, 1 << 20))):
        target.write(piece)
        length -= len(piece)
