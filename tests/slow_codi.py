"""CODI (arXiv 2502.21074), slow and obvious: the parts of its loss, one row at a time, as differentiable tensors."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from slow_thoughts import Feed, Row, embedded, greedy, layers_of, losses_of, reduced, think
from torch import Tensor
from transformers import PreTrainedModel


class CodiRow(NamedTuple):
    """One problem, as the student and as the teacher read it."""

    student: Row
    """Question, ``<bot>``, thoughts, ``<eot>``, answer. Labels: the answer."""
    teacher: Row
    """Question, written steps, answer. Labels: steps and answer."""
    student_position: int
    """Position in the student's sequence whose state is trained to equal the teacher's: the next token is the first
    one of the answer proper."""
    teacher_position: int
    """The corresponding position in the teacher's sequence."""


@dataclass(frozen=True)
class CodiOptions:
    """Factors and variants of CODI's loss."""

    teacher_factor: float = 1.0
    distill_factor: float = 1.0
    distance: str = "smooth_l1"
    """``smooth_l1`` (beta 1), or ``l2``: the squared difference, which is divided by the standard deviation twice."""
    divide_by_std: bool = True
    """Whether each layer's distance is divided by the standard deviation of the teacher's states."""
    layers: Sequence[int] | None = None
    """Which of the L + 1 states are compared: 0 is the embedding output, L the last layer after the final norm. None:
    all."""


class CodiWeights(NamedTuple):
    """How the rows of a batch are reduced, for each row of the batch."""

    student: Sequence[float]
    """Weight of each target of the student."""
    teacher: Sequence[float]
    """Weight of each target of the teacher."""
    distill: Sequence[float]
    """Weight of the row's distance."""


def slow_codi(
    model: PreTrainedModel,
    rows: Sequence[CodiRow],
    feed: Feed,
    options: CodiOptions,
    weights: CodiWeights | None = None,
    groups: Sequence[Sequence[int]] | None = None,
) -> dict[str, Tensor]:
    """The parts of the loss, with their factors: ``student``, ``teacher``, ``distill``. Their sum is the loss.

    Args:
        model: student and teacher.
        rows: the problems of the batch.
        feed: the projection that a state goes through before it is fed back.
        options: factors and variants.
        weights: None: means over all targets of the student, all targets of the teacher, and all rows.
        groups: rows (their indices) whose teacher states share one standard deviation: those of a micro batch. None:
            all rows are one group. The distance of a row in no group is not part of the loss.
    """
    students, teachers = [], []
    for row in rows:
        students.append(layers_of(model, think(model, row.student, feed)[0]))
        teachers.append(layers_of(model, embedded(model, row.teacher.input_ids)))
    student_losses = [
        losses_of(model, layers[-1], row.student.labels) for layers, row in zip(students, rows, strict=True)
    ]
    teacher_losses = [
        losses_of(model, layers[-1], row.teacher.labels) for layers, row in zip(teachers, rows, strict=True)
    ]
    # [rows, L + 1, D]
    at_student = [[states[row.student_position] for states in s] for s, row in zip(students, rows, strict=True)]
    at_teacher = [[states[row.teacher_position] for states in t] for t, row in zip(teachers, rows, strict=True)]
    shares = weights.distill if weights else [1 / len(rows)] * len(rows)
    distill = torch.zeros(())
    for group in groups if groups is not None else [range(len(rows))]:
        distances = _distances([at_student[row] for row in group], [at_teacher[row] for row in group], options)
        distill = distill + sum(shares[row] * distance for row, distance in zip(group, distances, strict=True))
    return {
        "student": reduced(student_losses, weights and weights.student),
        "teacher": options.teacher_factor * reduced(teacher_losses, weights and weights.teacher),
        "distill": options.distill_factor * distill,
    }


def _distances(
    students: Sequence[Sequence[Tensor]], teachers: Sequence[Sequence[Tensor]], options: CodiOptions
) -> list[Tensor]:
    """For each row of a group, the mean over layers and dimensions of its distance from the teacher.

    Args:
        students: for each row, L + 1 states [D].
        teachers: likewise.
        options: which distance.
    """
    layers = range(len(teachers[0])) if options.layers is None else options.layers
    distances = [torch.zeros(())] * len(students)
    for layer in layers:
        # One standard deviation for all numbers of the layer: over rows and dimensions, unbiased.
        std = torch.stack([states[layer] for states in teachers]).detach().std()
        for row, (student, teacher) in enumerate(zip(students, teachers, strict=True)):
            target = teacher[layer].detach()
            if options.distance == "smooth_l1":
                distance = F.smooth_l1_loss(student[layer], target)
            else:
                distance = (student[layer] - target).square().mean()
            if options.divide_by_std:
                distance = distance / (std if options.distance == "smooth_l1" else std**2)
            distances[row] = distances[row] + distance / len(layers)
    return distances


@torch.no_grad()
def slow_codi_tokens(
    model: PreTrainedModel, prompt: Row, feed: Feed, max_new_tokens: int, eos_id: int, eot_id: int
) -> list[int]:
    """The greedy answer to a prompt (question, ``<bot>``, thoughts, ``<eot>``), which never contains ``<eot>``."""
    return greedy(model, think(model, prompt, feed)[0], max_new_tokens, eos_id, banned=[eot_id])
