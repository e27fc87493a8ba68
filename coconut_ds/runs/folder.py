"""The directory of one attempt at a run: ``<save_path>/<name>/<signature>/<attempt_id>/``."""

import json
import re
import secrets
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from coconut_ds.files import damage

RUN_LINE = "run: "
"""What stands before the directory in a run's log."""
ENGINE = "engine"
"""The part of a checkpoint that only a resume of its own run reads; it is pickle."""
RESUME_STATE = "resume_state.json"
"""In it: position, scores and the length of the record."""
CHECKPOINT = re.compile(r"checkpoint_(\d+)(?:_(\d+))?")
"""After so many epochs, and so many updates of the next."""
LEFT_OVERS = (
    *(f".checkpoint_*.{kind}" for kind in ("part*", "old.*", "gone.*", "universal*")),
    *(f".{name}.*.part" for name in ("run_manifest.yaml", "config.yaml", "summary.json")),
)
"""What a process that was killed while it wrote, replaced, removed or converted leaves behind."""


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
        """Where the attempt stands."""
        return self.path / "run_manifest.yaml"

    @property
    def metrics(self) -> Path:
        """The record of numbers."""
        return self.path / "metrics.jsonl"

    @property
    def summary(self) -> Path:
        """What came out of a run that ended."""
        return self.path / "summary.json"

    @property
    def problems(self) -> Path:
        """Generated problems."""
        return self.path / "problems"

    @property
    def signature(self) -> str:
        """The name of the folder that attempts of one run share."""
        return self.path.parent.name

    def checkpoint(self, epoch: int, batch: int = 0) -> Path:
        """The checkpoint after ``epoch`` epochs and ``batch`` updates of the next."""
        return self.path / (f"checkpoint_{epoch}_{batch}" if batch else f"checkpoint_{epoch}")

    def checkpoints(self) -> list[Path]:
        """Folders with the name of a checkpoint, the newest first; not all need be complete."""
        found = {path: match for path in self.path.glob("checkpoint_*") if (match := CHECKPOINT.fullmatch(path.name))}
        return sorted(found, key=lambda path: (int(found[path][1]), int(found[path][2] or 0)), reverse=True)

    def left_overs(self) -> list[Path]:
        """Files and folders that killed processes left behind, if no process is at work here.

        A whole checkpoint that had lost its name when its successor did not have it yet is no left-over.
        """
        found = sorted({path for pattern in LEFT_OVERS for path in self.path.glob(pattern)})
        return [path for path in found if not (".old." in path.name and self._is_only_copy(path))]

    def _is_only_copy(self, path: Path) -> bool:
        """Whether ``.checkpoint_3.old.<pid>`` is whole and there is no ``checkpoint_3``."""
        name = path.name.removeprefix(".").partition(".")[0]
        return not (self.path / name).exists() and not damage(path)

    def write_samples(self, epoch: int, samples: list[dict[str, Any]]) -> None:
        """A few validation problems with what the model wrote."""
        folder = self.path / "samples"
        folder.mkdir(exist_ok=True)
        text = json.dumps(samples, indent=2, ensure_ascii=False)
        (folder / f"epoch_{epoch}.json").write_text(text + "\n", encoding="utf-8")


def new_attempt_id() -> str:
    """Sorts by time, in UTC since machines may stand in several zones; two launches in one second differ."""
    return f"{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}-{secrets.token_hex(2)}"
