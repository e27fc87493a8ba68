"""Numbers of a run: ``metrics.jsonl`` is the record, wandb its mirror.

One JSON object a line. Training lines have ``train/*`` and ``perf/*``; evaluation lines have ``eval/*``; both have
``epoch`` and ``global_step``. ``perf/*`` and ``time`` are the only keys that differ between equal runs.
"""

import json
import os
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

from coconut_ds.errors import CheckpointError


class Mirror(Protocol):
    """Where numbers go besides the file."""

    def log(self, values: dict[str, Any], step: int) -> None:
        """One line of numbers."""

    def close(self) -> None:
        """No more numbers."""


class MetricsLog:
    """Appends lines to ``metrics.jsonl``; written and flushed one by one, so a killed run loses none."""

    def __init__(self, path: Path, mirror: Mirror | None = None) -> None:
        self._file = path.open("a", encoding="utf-8")
        self._mirror = mirror

    def flushed(self) -> int:
        """Length of the record in bytes, all of it on the disk."""
        self._file.flush()
        os.fsync(self._file.fileno())
        return self._file.tell()

    def log(self, values: dict[str, Any]) -> None:
        """One line; ``values`` holds ``global_step``."""
        self._file.write(json.dumps({**values, "time": round(time.time(), 3)}) + "\n")
        self._file.flush()
        if self._mirror is not None:
            self._mirror.log(values, int(values["global_step"]))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._file.close()
        except OSError:
            # What a full disk did not take is still in the buffer; the error of its first try is on its way.
            if error is None:
                raise
        finally:
            if self._mirror is not None:
                self._mirror.close()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """All lines of a ``metrics.jsonl``."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def cut_metrics(path: Path, length: int) -> Path | None:
    """Cuts a record to what a checkpoint knows of, so that each step stands in it once.

    What follows, the steps that are to be made again, is appended to ``<name>.lost.jsonl``, whose path is returned.

    Raises:
        CheckpointError: the record is shorter than the checkpoint says.
    """
    there = path.stat().st_size if path.exists() else 0
    if there < length:
        raise CheckpointError(
            f"{path}: has {there} bytes, the checkpoint knows of {length}; the record was changed, and numbers of this "
            "run are lost: put it back, or start afresh with run.resume_mode=never"
        )
    if there == length:
        return None
    lost = path.with_suffix(".lost.jsonl")
    with path.open("rb+") as record, lost.open("ab+") as tail:
        record.seek(length)
        # A full disk or a killed launch leaves half a line, which is not to begin the next.
        if tail.tell():
            tail.seek(-1, os.SEEK_END)
            tail.write(b"" if tail.read() == b"\n" else b"\n")
        tail.write(record.read())
        tail.flush()
        os.fsync(tail.fileno())
        record.truncate(length)
        os.fsync(record.fileno())
    return lost
