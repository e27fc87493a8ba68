"""The outcome of an optimizer update, or of several with the same samples."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from coconut_ds.objectives.base import Objective


@dataclass(frozen=True)
class UpdateResult:
    """The outcome of one optimizer update."""

    losses: dict[str, float]
    """Each part of the loss over the global batch, by name, before the update."""
    grad_norm: float
    """Norm of the gradient over all parameters, before clipping."""
    stops: bool
    """Whether any rank had been asked to stop; the same on all ranks."""
    measures: Mapping[str, float] = field(default_factory=dict)
    """Further numbers of the update, by name."""

    @classmethod
    def of(cls, objective: Objective, numbers: Sequence[float], grad_norm: float, stops: bool) -> "UpdateResult":
        """The outcome, with ``numbers`` of the global batch in the order in which the objective returns them."""
        count = len(objective.parts)
        losses = dict(zip(objective.parts, numbers[:count], strict=True))
        measures = objective.logged(dict(zip(objective.measures, numbers[count:], strict=True)))
        return cls(losses, grad_norm, stops, measures)

    @property
    def loss(self) -> float:
        """Loss over the global batch, before the update."""
        return sum(self.losses.values())

    @property
    def parts(self) -> dict[str, float]:
        """The parts of the loss if there are several, else nothing."""
        return self.losses if len(self.losses) > 1 else {}
