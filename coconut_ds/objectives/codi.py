"""``codi``: self-distillation of written steps into thoughts (CODI, arXiv 2502.21074).

One model is student and teacher. The *student* reads the sequence of the run's method, with thoughts; the *teacher*
reads question, steps and answer as text. Both learn by the likelihood. In addition, the student's states in all layers
approach those of the teacher at one position, the one that predicts the first token of the answer's value:

    loss = student + teacher_weight · teacher + γ · mean over layers of distance(s, t) / std(t)

s and t are the states of student and teacher; no gradient flows into t.

Shapes:
    B  rows of a micro batch
    T  columns of a collated view
    D  hidden size
    L  layers of the model
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from coconut_ds.data.sequences import Sequences
from coconut_ds.data.token_arrays import ProblemArrays
from coconut_ds.methods import METHODS
from coconut_ds.methods.base import CurriculumSpec, Method, TokenizedProblem, join
from coconut_ds.methods.cot import Cot
from coconut_ds.methods.layout import IGNORE
from coconut_ds.methods.layouts import Integers, Layouts
from coconut_ds.model.collate import Batch, Collator
from coconut_ds.model.latent_loop import LatentLoop
from coconut_ds.model.layer_states import LayerStates, ReadColumns
from coconut_ds.model.micro_batch import MicroBatch
from coconut_ds.objectives.base import Examples, Objective


class CotWithoutLastStep(Cot):
    """Question, **all steps but the last, answer**. The loss is on the bold parts."""

    name: ClassVar[str] = "cot_without_last_step"
    unit: ClassVar[Literal["step", "token"]] = "step"

    def written(self, problem: TokenizedProblem, stage: int, spec: CurriculumSpec) -> list[int]:
        """All steps but the last."""
        return join(problem.steps[:-1])


WITHOUT_LAST_STEP = CotWithoutLastStep()


@dataclass(frozen=True)
class CodiExamples(Examples):
    """Student and teacher view of the problems of a global batch."""

    value_starts: tuple[Integers, ...]
    """For each view: where the value of each problem's answer begins in its sequence."""


class CodiView(NamedTuple):
    """The tensors of one view of a micro batch."""

    batch: Batch
    reads: ReadColumns
    """The column that predicts the first token of the answer's value."""

    def to(self, device: torch.device) -> "CodiView":
        """The same tensors on ``device``."""
        return CodiView(self.batch.to(device), self.reads.to(device))


class CodiBatch(NamedTuple):
    """The tensors of a micro batch."""

    student: CodiView
    teacher: CodiView
    share: float
    """Weight of each row's distance: the rows of the global batch count alike, copies not at all."""

    def to(self, device: torch.device) -> "CodiBatch":
        """The same tensors on ``device``."""
        return CodiBatch(self.student.to(device), self.teacher.to(device), self.share)


class Codi(Objective):
    """Cross entropies of student and teacher, and the distance of their states."""

    parts: ClassVar[tuple[str, ...]] = ("student", "teacher", "distillation")

    def views(self, method: Method) -> tuple[Method, ...]:
        """The student's method and the teacher's."""
        return method, METHODS["cot"] if self.config.objective.codi.teacher_last_step else WITHOUT_LAST_STEP

    def examples(
        self, sequences: Sequences, epoch: int, stage: int, problems: ProblemArrays, indices: Sequence[int]
    ) -> CodiExamples:
        """See ``Objective``."""
        views = super().examples(sequences, epoch, stage, problems, indices).views
        return CodiExamples(views, tuple(sequences.value_starts(view) for view in views))

    def collate(self, collator: Collator, examples: Examples, views: Sequence[MicroBatch]) -> CodiBatch:
        """See ``Objective``."""
        assert isinstance(examples, CodiExamples)
        student, teacher = (
            view_of(collator, view, starts[view.rows])
            for view, starts in zip(views, examples.value_starts, strict=True)
        )
        return CodiBatch(student, teacher, views[0].share)

    def loss(self, loop: LatentLoop, batch: CodiBatch) -> Tensor:
        """The three parts, [3]."""
        return self.parts_and_states(loop, batch)[0]

    def parts_and_states(self, loop: LatentLoop, batch: CodiBatch) -> tuple[Tensor, Tensor]:
        """The three parts, [3], and the student's states [B, T, D] (``LatentLoop.encode``), for objectives that add to
        this one.

        The teacher's pass serves its cross entropy and the distance. The public code makes two passes, which are equal
        without dropout.
        """
        settings = self.config.objective.codi
        student, states, own = _passed(loop, batch.student)
        teacher, _, aim = _passed(loop, batch.teacher, detached=True)
        distances = distance(own.float(), aim.float(), settings.distance, settings.divide_by_std)
        distillation = settings.gamma * batch.share * distances.sum()
        return torch.stack([student, settings.teacher_weight * teacher, distillation]), states


def view_of(collator: Collator, view: MicroBatch, value_starts: Integers) -> CodiView:
    """Collates one view.

    Args:
        collator: makes its tensors.
        view: the rows.
        value_starts: [B] where the value of each row's answer begins.
    """
    batch = collator.collate(view)
    inputs, targets = batch
    columns = sum(ids.shape[1] for ids in (inputs.prefix_ids, inputs.step_ids, inputs.rest_ids))
    return CodiView(
        batch, ReadColumns.of(targets.index[_places(view.layouts, value_starts)] % columns, collator.pinned)
    )


def _places(layouts: Layouts, value_starts: Integers) -> Tensor:
    """[B] which of the targets of all rows is the first token of each answer's value."""
    targets = np.flatnonzero(layouts.labels != IGNORE)
    return torch.from_numpy(np.searchsorted(targets, layouts.starts[:-1] + value_starts))


def _passed(loop: LatentLoop, view: CodiView, detached: bool = False) -> tuple[Tensor, Tensor, Tensor]:
    """The cross entropy of a view, its states [B, T, D], and those [L + 1, B, D] of all layers at the read columns."""
    inputs, targets = view.batch
    layers = LayerStates(loop.model, view.reads, detached)
    states = loop.encode(inputs, all_states=False, layers=layers)
    return loop.cross_entropy(states, targets), states, layers.states


def distance(own: Tensor, aim: Tensor, kind: str, divides_by_std: bool) -> Tensor:
    """The distance [B] of the states of each row: a mean over layers of means over the numbers of a state.

    The standard deviation is that of all numbers of a layer in the micro batch, as in the public code, so the result
    depends on the size of the micro batch.

    Args:
        own: [L + 1, B, D] states of the student.
        aim: [L + 1, B, D] states of the teacher.
        kind: ``objective.codi.distance``.
        divides_by_std: ``objective.codi.divide_by_std``.
    """
    differ = F.smooth_l1_loss if kind == "smooth_l1" else F.mse_loss
    each = differ(own, aim, reduction="none").mean(dim=-1)
    if divides_by_std:
        std = aim.flatten(1).std(dim=1, keepdim=True)
        divisor = std if kind == "smooth_l1" else std**2
        # The smallest normal number leaves every other divisor as it is, and 0 / 0 becomes 0.
        each = each / divisor.clamp(min=torch.finfo(aim.dtype).tiny)
    return each.mean(dim=0)
