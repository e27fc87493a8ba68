"""``run_manifest.yaml``: status and progress of an attempt. Replaced atomically: readers never see a partial file."""

import os
import socket
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel

from coconut_ds.files import write_whole

Status = Literal["running", "failed", "completed"]
INTERRUPTED = "interrupted"
"""``reason`` of a failed attempt that was asked to stop. It has saved, unless a second Ctrl-C stopped it at once."""


class LaunchRecord(BaseModel):
    """One launch of an attempt."""

    time: str
    host: str
    pid: int
    """Process id of rank 0."""
    number: int | None = None
    """Number of its launch folder (see ``fencing``). Null: written by an earlier version."""
    world_size: int
    batch: str
    """Micro batch size × accumulation steps × ranks."""
    from_checkpoint: str | None = None
    """Checkpoint that the launch resumed from; null: it started from the beginning."""
    converted: bool = False
    """Whether the engine state was converted from another number of ranks. The order of problems is then the same, but
    results need not be bitwise equal."""
    note: str | None = None
    """Differences from earlier launches: other library versions, or what ``run.allow_mismatch`` accepted."""


class RunManifest(BaseModel):
    """Content of the manifest. Unknown keys, as other versions may write, are ignored when it is read."""

    name: str
    signature: str
    attempt: str
    status: Status
    reason: str | None = None
    """Why the attempt failed (``interrupted``, or the error), or ``solved`` if it completed early."""
    stage: int = 0
    resume_epoch: int = 0
    """Epochs completed at the last checkpoint."""
    resume_step: int = 0
    """Updates completed at the last checkpoint."""
    num_epochs: int
    last_checkpoint: str | None = None
    best_checkpoint: str | None = None
    best_accuracy: float | None = None
    """Best accuracy on validation problems in the latest stage, from 0 to 1."""
    host: str
    pid: int
    world_size: int
    code: dict[str, Any]
    """Commit and a hash of uncommitted changes, or the version of the installed package and a hash of its source."""
    versions: dict[str, str]
    wandb_run_id: str | None = None
    tracked_runs: dict[str, str] = {}
    """The id under which each tracker knows this attempt, by the name of the tracker; wandb's is ``wandb_run_id``."""
    started: str
    updated: str
    ended: str | None = None
    launches: list[LaunchRecord] = []
    command: list[str] = []

    def write(self, path: Path, write: Callable[[Path, str], None] = write_whole) -> None:
        """Sets ``updated`` to now and replaces the file by means of ``write``."""
        self.updated = now()
        write(path, yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False))


def read_manifest(path: Path) -> RunManifest | None:
    """Reads the manifest; None if it is missing, empty or malformed (the checkpoints are enough to resume from)."""
    try:
        return RunManifest.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    except (OSError, yaml.YAMLError, ValueError, RecursionError):
        # Malformed YAML can raise other errors than YAMLError: a date with month 13 raises ValueError.
        return None


def now() -> str:
    """Current UTC time in ISO format, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def this_launch(world_size: int, batch: str) -> LaunchRecord:
    """A record of this process as a launch that starts now."""
    return LaunchRecord(time=now(), host=socket.gethostname(), pid=os.getpid(), world_size=world_size, batch=batch)


def command_line() -> list[str]:
    """The Python interpreter and arguments that this process was started with."""
    return [sys.executable, *sys.argv]
