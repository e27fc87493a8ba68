"""What a checkpoint records about its run besides the state of the engine: ``resume_state.json``."""

import json
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Self

from pydantic import ConfigDict, TypeAdapter, ValidationError

from coconut_ds.errors import CheckpointError
from coconut_ds.strict_json import parse_loosely

_STRICT = ConfigDict(extra="forbid", strict=True)
LATER_FIELDS = (("position", "data_switches"), ("scores", "best_phase"))
"""Fields that older versions lack. A run without ``data.schedule`` does not write them, so its files are the same."""


@dataclass
class Position:
    """How far a run has trained. The training loop counts here; all counts start at the first epoch of the run."""

    __pydantic_config__ = _STRICT

    epoch: int = 0
    """Number of epochs completed, including validation; a run may begin with ``run.resume`` epochs skipped."""
    batch: int = 0
    """Number of updates completed in the current epoch."""
    global_step: int = 0
    """Number of updates completed in total."""
    updates_since_reset: int = 0
    """Number of updates since the optimizer state was last set to zero."""
    previous_stage: int | None = None
    """Stage of the previous epoch; None before the first epoch ends."""
    stage_switches: list[int] = field(default_factory=list)
    """Epochs, counted from 0, at which stages 1, 2, ... began, as decided by the curriculum."""
    data_switches: list[int] = field(default_factory=list)
    """Epochs, counted from 0, at which phases 1, 2, ... of ``data.schedule`` began."""
    loss_sum: float = 0.0
    """Sum of the losses of the updates completed in the current epoch."""
    solved: bool = False
    """Whether the run has reached ``training.stop_at`` and ends early."""

    def next_epoch(self, stage: int) -> None:
        """Counts the current epoch, which was trained at ``stage``, as completed."""
        self.epoch, self.batch, self.loss_sum, self.previous_stage = self.epoch + 1, 0, 0.0, stage


@dataclass
class Scores:
    """Validation accuracies of a run. Only accuracies of the same stage, on the same problems, are compared: earlier
    stages and earlier phases of ``data.schedule`` are easier."""

    __pydantic_config__ = _STRICT

    best_stage: int = -1
    """Highest stage evaluated so far; -1 before the first evaluation."""
    best_accuracy: float = -1.0
    """Best accuracy at ``best_stage``; -1 before the first evaluation."""
    best_checkpoint: str | None = None
    """Folder name of the checkpoint with that accuracy; None if it was not saved or has been removed."""
    best_phase: int = 0
    """Phase of ``data.schedule`` in which ``best_accuracy`` was found, counted from 0."""
    last_accuracy: float = -1.0
    last_checkpoint: str | None = None
    """Folder name of the checkpoint written last."""

    def record(self, stage: int, accuracy: float, phase: int = 0) -> bool:
        """Records an evaluation; returns whether it is the best so far."""
        self.last_accuracy = accuracy
        if (phase, stage, accuracy) <= (self.best_phase, self.best_stage, self.best_accuracy):
            return False
        self.best_phase, self.best_stage, self.best_accuracy, self.best_checkpoint = phase, stage, accuracy, None
        return True


@dataclass(frozen=True)
class ResumeState:
    """The content of ``resume_state.json``."""

    __pydantic_config__ = _STRICT

    position: Position
    scores: Scores
    metrics_bytes: int
    """Length of ``metrics.jsonl`` when the checkpoint was written."""
    world_size: int
    """Number of ranks that wrote the state of the engine."""

    @classmethod
    def read(cls, path: Path) -> Self:
        """Reads the file.

        Raises:
            CheckpointError: it cannot be read, is not JSON, or a field is missing, unknown or of another type.
        """
        try:
            text = path.read_bytes()
            state = TypeAdapter(cls).validate_json(text)
        except OSError as error:
            raise CheckpointError(f"{path}: cannot be read ({error})") from error
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"])) or "the file"
            raise _unusable(path, f"{where}: {first['msg']}") from error
        # The dataclasses have defaults for a new run; a file that was written here has every field.
        values = parse_loosely(text.decode())
        for name, part in (("position", Position), ("scores", Scores)):
            for one in fields(part):
                if one.name not in values[name] and (name, one.name) not in LATER_FIELDS:
                    raise _unusable(path, f"{name}.{one.name}: Field required")
        return state

    def write(self, path: Path) -> None:
        """Writes the file."""
        values = asdict(self)
        for part, name in LATER_FIELDS:
            if not values[part][name]:
                del values[part][name]
        path.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


def _unusable(path: Path, fault: str) -> CheckpointError:
    return CheckpointError(
        f"{path}: not a resume state of this version of coconut-ds ({fault}); restore the file, or start a new "
        "attempt with run.resume_mode=never"
    )
