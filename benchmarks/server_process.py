"""Starts ``python -m serve`` as another process, for the benchmarks."""

import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


@contextmanager
def started(arguments: Sequence[str], end: signal.Signals = signal.SIGTERM) -> Iterator[tuple[str, float]]:
    """Starts the server on a free port, and stops it when the context ends.

    Args:
        arguments: the server's command line.
        end: the signal that stops it.

    Yields:
        Host and port (``127.0.0.1:8000``), and the seconds until the server was ready.
    """
    began = time.perf_counter()
    command = [sys.executable, "-m", "serve", *arguments, "--port", "0"]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    try:
        for line in process.stderr:
            if found := re.search(r"running on http://([\d.]+:\d+)", line):
                yield found[1], time.perf_counter() - began
                break
        else:
            raise RuntimeError("the server ended before it was ready")
    finally:
        process.send_signal(end)
        process.stderr.read()
        process.wait(30)
