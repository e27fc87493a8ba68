"""Where a run stands: the numbers that a resume needs, and no objects."""

from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass
class Position:
    """Counts since the first epoch of a run."""

    epoch: int = 0
    """Epochs done, validation included."""
    batch: int = 0
    """Updates done in the epoch after them."""
    global_step: int = 0
    """Updates done in all."""
    updates_since_reset: int = 0
    """Updates since optimizer state was last zero."""
    previous_stage: int | None = None
    """Stage of the epoch before; None before the first."""
    stage_switches: list[int] = field(default_factory=list)
    """Epochs at which stages 1, 2, ... began, as the curriculum decided."""
    loss_sum: float = 0.0
    """Of the updates done in this epoch."""
    solved: bool = False
    """Nothing is left to learn (``training.stop_at``)."""

    def next_epoch(self, stage: int) -> None:
        """The epoch that was at ``stage`` is done."""
        self.epoch, self.batch, self.loss_sum, self.previous_stage = self.epoch + 1, 0, 0.0, stage

    def as_dict(self) -> dict[str, Any]:
        """Plain values; ``Position(**values)`` gives it back."""
        return asdict(self)
