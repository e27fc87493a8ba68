"""Numbers of a run: ``metrics.jsonl`` is the record, wandb its mirror.

One JSON object a line. Training lines have ``train/*`` and ``perf/*``; evaluation lines have ``eval/*``; both have
``epoch`` and ``global_step``. ``perf/*`` and ``time`` are the only keys that differ between equal runs.
"""

import json
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self


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
        self._file.close()
        if self._mirror is not None:
            self._mirror.close()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """All lines of a ``metrics.jsonl``."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
