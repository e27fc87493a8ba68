"""``run_manifest.yaml``: where an attempt stands. Replaced as a whole, so that a reader never sees half of one."""

import os
import socket
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel

from coconut_ds.files import write_whole

Status = Literal["running", "failed", "completed"]


class LaunchRecord(BaseModel):
    """One start of an attempt."""

    time: str
    host: str
    pid: int
    """Of rank 0."""
    world_size: int
    batch: str
    """Micro batch × accumulation × ranks."""
    from_checkpoint: str | None = None
    """Where it carried on; null: from the beginning."""
    converted: bool = False
    """The engine's state came from another number of ranks: the order of problems is the same, bits need not be."""
    note: str | None = None
    """What makes it not quite the same run: other versions, or differences that ``run.allow_mismatch`` accepted."""


class RunManifest(BaseModel):
    """What is known of an attempt. Keys that are not known, of another version, are passed over."""

    name: str
    signature: str
    attempt: str
    status: Status
    reason: str | None = None
    """Why it failed: ``interrupted``, or an error."""
    stage: int = 0
    resume_epoch: int = 0
    """Whole epochs in the last checkpoint."""
    resume_step: int = 0
    """Updates in the last checkpoint."""
    num_epochs: int
    last_checkpoint: str | None = None
    best_checkpoint: str | None = None
    best_accuracy: float | None = None
    """On validation problems, in the latest stage."""
    host: str
    pid: int
    world_size: int
    code: dict[str, Any]
    """Commit and difference, or the package's version."""
    versions: dict[str, str]
    wandb_run_id: str | None = None
    started: str
    updated: str
    ended: str | None = None
    launches: list[LaunchRecord] = []
    command: list[str] = []

    def write(self, path: Path) -> None:
        """Replaces the file."""
        self.updated = now()
        write_whole(path, yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False))


def read_manifest(path: Path) -> RunManifest | None:
    """The manifest; None where it is missing, empty or broken (the checkpoints know enough to go on)."""
    try:
        return RunManifest.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    except (OSError, yaml.YAMLError, ValueError, RecursionError):
        # YAML may be broken in ways that its reader does not call an error of YAML, such as a month 13.
        return None


def now() -> str:
    """The time, to the second, in UTC."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def this_launch(world_size: int, batch: str) -> LaunchRecord:
    """This process as a launch."""
    return LaunchRecord(time=now(), host=socket.gethostname(), pid=os.getpid(), world_size=world_size, batch=batch)


def command_line() -> list[str]:
    """How this process was started."""
    return [sys.executable, *sys.argv]
