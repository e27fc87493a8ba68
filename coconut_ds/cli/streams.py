"""Standard output and standard error that cannot end a program.

A text that a stream's encoding lacks (``→`` in ASCII or cp1252) is written with escapes instead. Long work also goes on
when nothing reads what it prints: its terminal was closed, the pipe's reader has ended, or the disk of its log is full.
"""

import io
import os
import select
import sys
from typing import Any

ALL_ERRORS = "backslashreplace"
"""How a character that the encoding lacks is written."""


def prepare_streams(outlives_readers: bool = False) -> None:
    """Prepares both streams. Every program of this project calls it first.

    Args:
        outlives_readers: whether the program goes on when its output can no longer be written. Programs whose output is
            their result should end then.
    """
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            # Python was started with this stream closed.
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_WRONLY), "w", encoding="utf-8"))
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=ALL_ERRORS)
            # Only Python's own stream: tests and notebooks replace it by one that does not end.
            if outlives_readers and type(stream) is io.TextIOWrapper and not _is_prepared(stream):
                setattr(sys, name, _outliving(stream))


def _is_prepared(stream: io.TextIOWrapper) -> bool:
    return isinstance(getattr(stream.buffer, "raw", stream.buffer), _OutlivingReaders)


def _outliving(stream: io.TextIOWrapper) -> io.TextIOWrapper:
    """A stream that writes to the same file, and never fails. The old one stays open for those who use it."""
    stream.flush()
    raw = _OutlivingReaders(stream.fileno())
    # As under ``python -u``: a stream without buffers has none below it either.
    buffer: Any = raw if stream.write_through else io.BufferedWriter(raw)
    return io.TextIOWrapper(
        buffer,
        encoding=stream.encoding,
        errors=ALL_ERRORS,
        line_buffering=stream.line_buffering,
        write_through=stream.write_through,
    )


class _OutlivingReaders(io.RawIOBase):
    """Writes to a descriptor, and drops what cannot be written."""

    def __init__(self, descriptor: int) -> None:
        super().__init__()
        self._descriptor = descriptor

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._descriptor

    def isatty(self) -> bool:
        return os.isatty(self._descriptor)

    def write(self, data: Any) -> int:
        left = memoryview(data).cast("B")
        size = len(left)
        while left:
            try:
                left = left[os.write(self._descriptor, left) :]
            except BlockingIOError:
                # Another program that shares the pipe has made it non-blocking.
                select.select([], [self._descriptor], [])
            except OSError:
                break
        return size
