"""The directory of one attempt at a run: ``<save_path>/<name>/<signature>/<attempt_id>/``."""

import json
import re
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from coconut_ds.files import damage

RUN_LINE = "run: "
"""Prefix of the log line that names the directory of the attempt, as one word of a shell command."""
ENGINE = "engine"
"""Subfolder of a checkpoint that is read only when its own run resumes."""
RESUME_STATE = "resume_state.json"
"""File in ``engine/`` with position, scores and the length of ``metrics.jsonl``."""
CHECKPOINT = re.compile(r"checkpoint_(\d+)(?:_(\d+))?")
"""Folder name: number of completed epochs and, within an epoch, number of updates of the next one."""
LEFT_OVERS = (
    *(f".checkpoint_*.{kind}" for kind in ("part*", "old.*", "gone.*", "universal*")),
    *(f".{name}.*.part" for name in ("run_manifest.yaml", "config.yaml", "summary.json")),
)
"""Patterns of files and folders that a process leaves behind if it is killed while it writes, replaces, removes or
converts something."""


@dataclass(frozen=True)
class RunFolder:
    """Paths of one attempt."""

    path: Path

    @property
    def config(self) -> Path:
        """The resolved configuration of the latest launch."""
        return self.path / "config.yaml"

    @property
    def manifest(self) -> Path:
        """Status and progress of the attempt (``RunManifest``)."""
        return self.path / "run_manifest.yaml"

    @property
    def metrics(self) -> Path:
        """One JSON line for each update, evaluation and stage switch."""
        return self.path / "metrics.jsonl"

    @property
    def summary(self) -> Path:
        """Results of a completed run."""
        return self.path / "summary.json"

    @property
    def problems(self) -> Path:
        """Folder with the generated problems."""
        return self.path / "problems"

    @property
    def signature(self) -> str:
        """The name of the folder that attempts of one run share."""
        return self.path.parent.name

    def checkpoint(self, epoch: int, batch: int = 0) -> Path:
        """The checkpoint after ``epoch`` epochs and ``batch`` updates of the next."""
        return self.path / (f"checkpoint_{epoch}_{batch}" if batch else f"checkpoint_{epoch}")

    def checkpoints(self) -> list[Path]:
        """Folders named like a checkpoint, the newest first; some may be incomplete."""
        found = {path: match for path in self.path.glob("checkpoint_*") if (match := CHECKPOINT.fullmatch(path.name))}
        return sorted(found, key=lambda path: (int(found[path][1]), int(found[path][2] or 0)), reverse=True)

    def left_overs(self) -> list[Path]:
        """Files and folders that killed processes left behind. Call it only if no other process works in this folder.

        A complete checkpoint that was renamed to make room for its successor is not a left-over as long as the
        successor does not exist.
        """
        found = sorted({path for pattern in LEFT_OVERS for path in self.path.glob(pattern)})
        return [path for path in found if not (".old." in path.name and self._is_only_copy(path))]

    def _is_only_copy(self, path: Path) -> bool:
        """Whether ``.checkpoint_3.old.<pid>`` is complete and there is no ``checkpoint_3``."""
        name = path.name.removeprefix(".").partition(".")[0]
        return not (self.path / name).exists() and not damage(path)

    def write_samples(self, epoch: int, samples: list[dict[str, Any]], write: Callable[[Path, str], None]) -> None:
        """Writes a few validation problems, with what the model wrote, to ``samples/epoch_<N>.json``."""
        folder = self.path / "samples"
        folder.mkdir(exist_ok=True)
        write(folder / f"epoch_{epoch}.json", json.dumps(samples, indent=2, ensure_ascii=False) + "\n")


def new_attempt_id() -> str:
    """A new attempt id that sorts by start time. It is in UTC, since machines may be in different time zones, and ends
    in random digits, so that two launches in the same second differ."""
    return f"{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}-{secrets.token_hex(2)}"
