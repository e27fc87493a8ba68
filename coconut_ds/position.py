"""Where a run stands: the numbers that a resume needs, and no objects."""

from dataclasses import dataclass, field


@dataclass
class Position:
    """Counts since the first epoch of a run."""

    epoch: int = 0
    """Epochs done."""
    global_step: int = 0
    """Updates done."""
    updates_since_reset: int = 0
    """Updates since optimizer state was last zero."""
    stage_switches: list[int] = field(default_factory=list)
    """Epochs at which stages 1, 2, ... began, as the curriculum decided."""
