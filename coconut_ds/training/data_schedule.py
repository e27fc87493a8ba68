"""Which problems a run trains on in an epoch (``data.schedule``). A pure function of the recorded switches."""

from collections.abc import Sequence
from dataclasses import dataclass

from coconut_ds.runs.resume_state import Position
from coconut_ds.settings.data_schedule import Phase
from coconut_ds.training.curriculum import Curriculum


@dataclass(frozen=True)
class DataSchedule:
    """The phases of a run: the entries of ``data.schedule``, then the run's own problems.

    ``switches`` are the epochs, counted from 0, at which phases 1, 2, ... began, as recorded so far.
    """

    phases: tuple[Phase, ...]
    """The entries of ``data.schedule``."""
    first_epoch: int = 0
    """The first epoch that is trained (``run.resume``)."""

    def phase(self, epoch: int, switches: Sequence[int]) -> int:
        """The phase of ``epoch``, counted from 0; ``len(phases)`` is that of the run's own problems."""
        return sum(epoch >= switch for switch in switches)

    def began(self, switches: Sequence[int]) -> int:
        """The epoch at which the latest phase began."""
        return switches[-1] if switches else self.first_epoch

    def is_over(self, epoch: int, switches: Sequence[int]) -> bool:
        """Whether ``epoch`` trains on the run's own problems."""
        return self.phase(epoch, switches) == len(self.phases)

    def ends(self, epoch: int, switches: Sequence[int], mastery: float) -> bool:
        """Whether the phase ends after ``epoch``. ``mastery``: how well its problems are learned
        (``training.advance_metric``)."""
        if self.is_over(epoch, switches):
            return False
        phase = self.phases[self.phase(epoch, switches)]
        lasted = epoch + 1 - self.began(switches)
        is_mastered = phase.mastery is not None and mastery >= phase.mastery
        return is_mastered or (phase.epochs is not None and lasted >= phase.epochs)


def record_switches(
    position: Position, schedule: DataSchedule, curriculum: Curriculum, share: float, mastery: float
) -> dict[str, list[int]]:
    """Records in ``position`` what ends with the current epoch: the phase, the stage, or the run.

    Stages that end by accuracy, and ``training.stop_at``, wait for the run's own problems: how well a model does on
    earlier, easier ones says nothing about its stages on those.

    Args:
        position: of the epoch, which is not counted as completed yet.
        schedule: decides when phases end.
        curriculum: decides when stages and the run end.
        share: of the validation problems, how many were wholly right.
        mastery: how well the stage is learned, by ``training.advance_metric``.

    Returns:
        What ``metrics.jsonl`` says about it; empty if nothing was recorded.
    """
    epoch, phases, stages = position.epoch, position.data_switches, position.stage_switches
    if schedule.ends(epoch, phases, mastery):
        phases.append(epoch + 1)
        return {"data/switches": phases}
    if not schedule.is_over(epoch, phases):
        return {}
    position.solved = curriculum.solved(epoch, stages, share)
    if not curriculum.advances(epoch, stages, mastery, schedule.began(phases)):
        return {}
    stages.append(epoch + 1)
    return {"curriculum/stage_switches": stages}
