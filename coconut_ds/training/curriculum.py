"""The schedule of a run: the stage of each epoch, the learning rate. Pure functions of numbers.

Nothing here keeps state: everything follows from the counts and the stage switches that a checkpoint records.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from coconut_ds.methods.base import Method
from coconut_ds.settings import TrainingConfig


@dataclass(frozen=True)
class Curriculum:
    """Decides the stage of each epoch of a run."""

    training: TrainingConfig
    has_curriculum: bool
    last_stage: int
    """``Method.final_stage``; 0 for methods without a curriculum."""
    epochs_per_stage: int
    """Length of a stage under ``training.advance=epochs``."""
    first_epoch: int = 0
    """The first epoch that is trained, counted from 0 (``run.resume``)."""
    stays_last: bool = False
    """Whether all epochs are at the last stage."""

    @classmethod
    def of(
        cls, training: TrainingConfig, method: Method, longest: int, first_epoch: int = 0, stays_last: bool = False
    ) -> "Curriculum":
        """The curriculum of ``method`` on problems with at most ``longest`` stages (``Method.num_stages``)."""
        last = method.final_stage(longest, training.curriculum_spec) if method.has_curriculum else 0
        epochs_per_stage = method.epochs_per_stage or training.epochs_per_stage
        return cls(training, method.has_curriculum, last, epochs_per_stage, first_epoch, stays_last)

    @property
    def recorded(self) -> bool:
        """Whether validation accuracy decides when a stage ends, so that stage switches have to be recorded."""
        decides = self.training.advance == "accuracy" and self.training.stage_switches is None
        return self.has_curriculum and decides and not self.stays_last

    def stage(self, epoch: int, switches: Sequence[int]) -> int:
        """The stage of ``epoch``. ``switches`` holds the epochs at which stages 1, 2, ... began, as recorded so far."""
        if not self.has_curriculum or self.stays_last:
            return self.last_stage
        if self.training.stage_switches is not None:
            switches = self.training.stage_switches
        elif not self.recorded:
            return min(epoch // self.epochs_per_stage, self.last_stage)
        return min(sum(epoch >= switch for switch in switches), self.last_stage)

    def advances(self, epoch: int, switches: Sequence[int], accuracy: float, since: int = 0) -> bool:
        """Whether the stage ends after ``epoch``.

        Args:
            epoch: the epoch.
            switches: the epochs at which stages 1, 2, ... began, as recorded so far.
            accuracy: share of validation problems that were wholly right, or another value of
                ``training.advance_metric``.
            since: the first epoch that counts (the first on the run's own problems, with ``data.schedule``).
        """
        if not self.recorded or self.stage(epoch, switches) >= self.last_stage:
            return False
        began = switches[-1] if switches else self.first_epoch
        lasted = epoch + 1 - max(began, since)
        if lasted < self.training.min_epochs_per_stage:
            return False
        longest = self.training.max_epochs_per_stage
        return accuracy >= self.training.advance_at or (longest is not None and lasted >= longest)

    def span(self, epoch: int, switches: Sequence[int]) -> tuple[int, int]:
        """The first epoch of the stage of ``epoch``, and the epoch before which it ends at the latest."""
        stage, began, end = self.stage(epoch, switches), epoch, self.training.num_epochs
        while began > self.first_epoch and self.stage(began - 1, switches) == stage:
            began -= 1
        if self.recorded:
            longest = self.training.max_epochs_per_stage
            return began, end if longest is None or stage == self.last_stage else min(began + longest, end)
        return began, next((later for later in range(epoch, end) if self.stage(later, switches) != stage), end)

    def rate(
        self, epoch: int, switches: Sequence[int], batch: int, num_batches: int, updates_since_reset: int
    ) -> float:
        """The learning rate of an update.

        Args:
            epoch: its epoch.
            switches: the epochs at which stages 1, 2, ... began, as recorded so far.
            batch: number of updates that the epoch has made before it.
            num_batches: number of updates of the epoch. If it differs between epochs, ``training.lr_schedule`` falls
                by the same amount in each epoch.
            updates_since_reset: number of updates since the optimizer was reset.
        """
        by_stage = self.training.lr_schedule_over == "stage"
        began, end = self.span(epoch, switches) if by_stage else (self.first_epoch, self.training.num_epochs)
        done = (epoch - began) * num_batches + batch
        warmed_up = min(updates_since_reset, done) if by_stage else updates_since_reset
        factor = schedule_factor(self.training, done, (end - began) * num_batches)
        return learning_rate(self.training, warmed_up) * factor

    def solved(self, epoch: int, switches: Sequence[int], accuracy: float) -> bool:
        """Whether the run may stop after ``epoch``: it is at the last stage and has reached ``training.stop_at``."""
        wanted = self.training.stop_at
        return wanted is not None and accuracy >= wanted and self.stage(epoch, switches) == self.last_stage


def learning_rate(training: TrainingConfig, updates_since_reset: int) -> float:
    """Learning rate of the next update, without ``schedule_factor``: linear warm-up over ``training.warmup_steps``
    updates, then constant."""
    if updates_since_reset >= training.warmup_steps:
        return training.lr
    return training.lr * (updates_since_reset + 1) / training.warmup_steps


def schedule_factor(training: TrainingConfig, done: int, total: int) -> float:
    """What ``training.lr_schedule`` multiplies the learning rate of the next update with.

    1 during the first warm-up. After it, it falls from 1 to 0 along half a cosine or a line.

    Args:
        training: holds schedule and warm-up.
        done: number of updates that the run, or the stage, has made.
        total: number of updates that it will have made at its end.
    """
    if training.lr_schedule == "constant" or done <= training.warmup_steps:
        return 1.0
    share = (done - training.warmup_steps) / (total - training.warmup_steps)
    return 1 - share if training.lr_schedule == "linear" else (1 + math.cos(math.pi * share)) / 2


def resets_optimizer(training: TrainingConfig, stage: int, previous_stage: int | None) -> bool:
    """Whether the optimizer state is reset before an epoch at ``stage``. ``previous_stage``: of the epoch before it."""
    if previous_stage is None or training.reset_optimizer == "never":
        return False
    return training.reset_optimizer == "epoch" or stage != previous_stage
