"""Finds the attempts under a folder and what is known of each. Only reads files; does not need torch.

An attempt is a folder ``<name>/<signature>/<attempt_id>/``, at any depth, that is named like an attempt or contains a
manifest. If the manifest is missing or malformed, the status is ``unknown`` and the remaining facts come from the
checkpoints. A checkpoint is *complete* if all its files exist with their full length (``files.is_complete``); only
``verify`` and ``prune`` hash the contents, since that reads every byte.
"""

import os
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import yaml

from coconut_ds.errors import CoconutError
from coconut_ds.files import damage
from coconut_ds.runs.attempts import attempts_of, is_unfinished
from coconut_ds.runs.folder import CHECKPOINT, ENGINE, RESUME_STATE, RunFolder
from coconut_ds.runs.holder import Holder
from coconut_ds.runs.lock import FILE as LOCK
from coconut_ds.runs.manifest import INTERRUPTED, RunManifest, read_manifest
from coconut_ds.strict_json import parse_loosely

ATTEMPT_ID = re.compile(r"\d{8}-\d{6}-[0-9a-f]{4}")
SILENCE_S = 120
"""Seconds without a heartbeat after which a lock of another machine counts as abandoned: twice what a launch waits
before it takes over, since the clocks of machines may differ."""

Status = Literal["running", "stale", "interrupted", "failed", "completed", "unknown"]


class NotFoundError(CoconutError):
    """No attempt, or more than one, matches the requested name."""


@dataclass(frozen=True)
class Checkpoint:
    """A folder named like a checkpoint."""

    path: Path
    epoch: int
    batch: int
    problems: tuple[str, ...]
    """What is wrong with its files (missing, or of another length); empty if the checkpoint is complete."""

    @classmethod
    def read(cls, path: Path) -> "Checkpoint":
        """Reads what is in the folder."""
        match = CHECKPOINT.fullmatch(path.name)
        assert match is not None
        return cls(path, int(match[1]), int(match[2] or 0), tuple(damage(path)))

    @cached_property
    def card(self) -> dict[str, Any]:
        """Content of its ``coconut.json``; empty if that cannot be read."""
        return _read_json(self.path / "coconut.json")

    @property
    def stage(self) -> int | None:
        """Curriculum stage at which the checkpoint was saved."""
        stage = self.card.get("stage")
        return stage if isinstance(stage, int) else None

    @property
    def accuracy(self) -> float | None:
        """Accuracy on validation problems, from 0 to 1; None if it was saved within an epoch."""
        provenance = self.card.get("provenance")
        accuracy = provenance.get("validation_accuracy") if isinstance(provenance, dict) else None
        return accuracy if isinstance(accuracy, (int, float)) else None

    @cached_property
    def bytes(self) -> int:
        """Size on the disk in bytes."""
        return folder_bytes(self.path)


@dataclass(frozen=True)
class Attempt:
    """What is known of an attempt."""

    folder: RunFolder
    manifest: RunManifest | None
    is_alive: bool
    """Whether a launch is, or may be, working on it."""
    checkpoints: tuple[Checkpoint, ...]
    """The newest first."""

    @property
    def path(self) -> Path:
        """The folder of the attempt."""
        return self.folder.path

    @property
    def id(self) -> str:
        """The attempt id, which is the name of the folder."""
        return self.path.name

    @property
    def name(self) -> str:
        """The name of the run (``run.name``)."""
        return self.path.parent.parent.name

    @property
    def status(self) -> Status:
        """The manifest's status. ``stale``: running, but its process is gone; ``interrupted``: it was asked to stop."""
        if self.manifest is None:
            return "unknown"
        if self.manifest.status == "running":
            return "running" if self.is_alive else "stale"
        if (self.manifest.status, self.manifest.reason) == ("failed", INTERRUPTED):
            return "interrupted"
        return self.manifest.status

    @property
    def complete(self) -> list[Checkpoint]:
        """Complete checkpoints, the newest first."""
        return [checkpoint for checkpoint in self.checkpoints if not checkpoint.problems]

    @property
    def epoch(self) -> int | None:
        """Epochs completed at the last checkpoint."""
        if self.manifest is not None:
            return self.manifest.resume_epoch
        return self.complete[0].epoch if self.complete else None

    @property
    def stage(self) -> int | None:
        """Curriculum stage of the last checkpoint."""
        if self.manifest is not None:
            return self.manifest.stage
        return self.complete[0].stage if self.complete else None

    @cached_property
    def best(self) -> Checkpoint | None:
        """The best checkpoint, by the manifest; if it names none, the best of the latest stage by their cards."""
        if self.manifest is not None and self.manifest.best_checkpoint is not None:
            name = Path(self.manifest.best_checkpoint).name
            return next((checkpoint for checkpoint in self.checkpoints if checkpoint.path.name == name), None)
        scored = [one for one in self.complete if one.stage is not None and one.accuracy is not None]
        # Among equal accuracies the earliest, as in training.
        return max(reversed(scored), key=lambda one: (one.stage, one.accuracy), default=None)

    @property
    def keep_last(self) -> int | None:
        """``training.keep_last`` of its configuration; None: all, or unknown."""
        try:
            value = yaml.safe_load(self.folder.config.read_text(encoding="utf-8"))["training"]["keep_last"]
        except (OSError, ValueError, TypeError, KeyError, RecursionError, yaml.YAMLError):
            return None
        return value if isinstance(value, int) and value > 0 else None

    @property
    def best_accuracy(self) -> float | None:
        """Best accuracy on validation problems in the latest stage, from 0 to 1."""
        if self.manifest is not None:
            return self.manifest.best_accuracy
        return self.best.accuracy if self.best is not None else None

    @cached_property
    def updated(self) -> float:
        """When its manifest was last written, or else its folder changed, in seconds since 1970."""
        try:
            written = datetime.fromisoformat(self.manifest.updated if self.manifest is not None else "")
        except ValueError:
            return self.path.stat().st_mtime if self.path.is_dir() else 0.0
        return (written if written.tzinfo else written.replace(tzinfo=UTC)).timestamp()

    @cached_property
    def bytes(self) -> int:
        """On the disk, left-overs included."""
        return folder_bytes(self.path)


def read_attempt(path: Path) -> Attempt:
    """Reads what is known of the attempt in a folder; does not fail if files in it are missing or malformed."""
    folder = RunFolder(path)
    checkpoints = tuple(map(Checkpoint.read, folder.checkpoints()))
    return Attempt(folder, read_manifest(folder.manifest), is_alive(path), checkpoints)


def find_attempts(root: Path) -> list[Attempt]:
    """All attempts under a folder, sorted by last activity, the most recent last.

    Raises:
        NotFoundError: there is no such folder.
    """
    if not root.is_dir():
        raise NotFoundError(f"{root}: no such folder; set --root to the save_path of the runs")
    return sorted(map(read_attempt, _attempt_folders(root)), key=lambda attempt: (attempt.updated, attempt.id))


def is_attempt(path: Path) -> bool:
    """Whether a folder is the folder of an attempt."""
    return ATTEMPT_ID.fullmatch(path.name) is not None or RunFolder(path).manifest.is_file()


def is_alive(path: Path) -> bool:
    """Whether a launch is, or may be, working in the folder of an attempt, judged by the lock of its run.

    On the holder's own machine this checks the holder's process, on other machines the age of the last heartbeat. A
    holder that has not written which attempt it works on may work on any.
    """
    lock = path.parent / LOCK
    try:
        silent_s = time.time() - lock.stat().st_mtime
        holder = Holder.from_text(lock.read_bytes())
    except FileNotFoundError:
        return False
    except OSError:
        return True
    if holder is not None and holder.attempt not in (None, path.name):
        return False
    # If the lock is empty or malformed, its creator may be about to write it.
    lives = None if holder is None else holder.lives()
    return silent_s <= SILENCE_S if lives is None else lives


def next_launch(attempt: Attempt) -> str:
    """What the same command does next under ``resume_mode=auto``, assuming that complete checkpoints are intact."""
    attempts = [read_attempt(folder.path) for folder in attempts_of(attempt.path.parent)]
    for other in attempts:
        if other.is_alive:
            return f"refuses to start: a launch of {other.id} is running"
    for other in attempts:
        if is_unfinished(other.manifest, other.manifest.num_epochs if other.manifest is not None else 0):
            usable = [one.path.name for one in other.complete if (one.path / ENGINE / RESUME_STATE).is_file()]
            if other.checkpoints and not usable:
                return f"refuses to start: no checkpoint of {other.id} can be used"
            return f"continues {other.id} from {usable[0] if usable else 'the beginning'}"
    return "says that the run is complete and stops, unless num_epochs grows" if attempts else "starts a new attempt"


def last_evaluation(attempt: Attempt) -> dict[str, Any] | None:
    """The last evaluation in ``metrics.jsonl``; malformed lines are skipped."""
    return _last_line(attempt.folder.metrics, '"eval/accuracy"')


def last_update(attempt: Attempt) -> dict[str, Any] | None:
    """The last update in ``metrics.jsonl``; malformed lines are skipped."""
    return _last_line(attempt.folder.metrics, '"train/loss"')


def folder_bytes(path: Path) -> int:
    """Total size of all files in bytes; files that vanish in the meantime count as 0."""
    total = 0
    for folder, _, names in os.walk(path):
        for name in names:
            try:
                total += os.lstat(os.path.join(folder, name)).st_size
            except OSError:
                continue
    return total


def _attempt_folders(root: Path) -> Iterator[Path]:
    """Yields the folders of attempts. Follows symbolic links, since large disks are often linked, and visits each
    folder once, so that a cycle of links ends."""
    seen = set()
    for folder, inner, _ in os.walk(root, followlinks=True):
        status = os.stat(folder)
        if (status.st_dev, status.st_ino) in seen:
            inner.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        if is_attempt(Path(folder)):
            inner.clear()
            yield Path(folder)


def _last_line(path: Path, key: str) -> dict[str, Any] | None:
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return None
    for line in reversed(lines):
        if key in line:
            # A killed process may have left a partial line.
            try:
                values = parse_loosely(line)
            except ValueError:
                continue
            if isinstance(values, dict):
                return values
    return None


def _read_json(path: Path) -> dict[str, Any]:
    try:
        values = parse_loosely(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return values if isinstance(values, dict) else {}
