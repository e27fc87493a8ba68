"""LOTUS (arXiv 2606.31779), slow and obvious: the parts of its loss, one row at a time, as differentiable tensors.

A row has S blocks of c *slots*: positions that are computed all at once, in passes 0 to R. The input of a slot is the
embedding e of its token in pass 0 and e + its state of the previous pass later on. Each pass encodes the whole prefix
again.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from slow_codi import CodiRow
from slow_thoughts import IGNORE, Row, embedded, greedy, layers_of, logits_of, losses_of, reduced, states_of
from torch import Tensor
from transformers import PreTrainedModel


class LotusRow(NamedTuple):
    """One problem."""

    row: Row
    """Question, ``<start>``, slots, ``<end>``, remaining steps, answer. The slots are the row's thoughts; they hold the
    token ``<latent>``."""
    steps: Sequence[Sequence[int]]
    """Tokens of the S replaced steps, with their newlines; empty for blocks without a step."""


@dataclass(frozen=True)
class LotusOptions:
    """The variants of LOTUS."""

    block: int
    """c, the number of slots of a block."""
    loops: int
    """R, the number of passes that feed states back: there are R + 1 passes."""
    step_factor: float = 0.05
    replace: bool = False
    """Whether the input of a slot is the state alone, instead of e + the state."""
    in_loop: bool = False
    """Whether block k (from 0) is read in pass k + 1, instead of all blocks in pass R."""
    flat: bool = False
    """Whether the targets of all steps are packed without gaps from the first slot on."""


class Pass(NamedTuple):
    """One pass over the prefix of a row: everything up to the last slot."""

    embeds: Tensor
    """[P, D] input embeddings."""
    states: Tensor
    """[P, D] hidden states after the final norm."""


def passes(model: PreTrainedModel, row: Row, options: LotusOptions) -> list[Pass]:
    """Passes 0 to R over a row with slots."""
    first, end = row.first_thought, row.first_thought + row.num_thoughts
    embeds = embedded(model, row.input_ids[:end])
    question, slots = embeds[:first], embeds[first:]
    made = [Pass(embeds, states_of(model, embeds))]
    for _ in range(options.loops):
        fed = made[-1].states[first:]
        embeds = torch.cat([question, fed if options.replace else slots + fed])
        made.append(Pass(embeds, states_of(model, embeds)))
    return made


def answer_embeds(model: PreTrainedModel, row: Row, options: LotusOptions) -> Tensor:
    """Input embeddings [T, D] of a whole row: what follows the slots attends to them as they are in pass R."""
    if not row.num_thoughts:
        return embedded(model, row.input_ids)
    end = row.first_thought + row.num_thoughts
    return torch.cat([passes(model, row, options)[-1].embeds, embedded(model, row.input_ids[end:])])


def step_labels(row: LotusRow, options: LotusOptions) -> list[list[int]]:
    """For each block, the labels of the prefix that belong to it, so that the state before a slot predicts its label.

    Targets beyond the slots of a block (with ``flat``: beyond the last slot) are left out.
    """
    first, count = row.row.first_thought, row.row.num_thoughts
    made = []
    packed = 0
    for block, step in enumerate(row.steps):
        offset = packed if options.flat else block * options.block
        room = count - offset if options.flat else options.block
        step = list(step[:room])
        packed += len(step)
        before = [IGNORE] * (first + offset) + step
        made.append(before + [IGNORE] * (first + count - len(before)))
    return made


def slow_lotus(
    model: PreTrainedModel,
    rows: Sequence[LotusRow],
    options: LotusOptions,
    answer_weights: Sequence[float] | None = None,
    step_weights: Sequence[float] | None = None,
) -> dict[str, Tensor]:
    """The parts of the loss, with their factors: ``answer`` and ``step``. Their sum is the loss.

    Args:
        model: the language model.
        rows: the problems of the batch.
        options: the variants.
        answer_weights: for each row, the weight of each label; None: the mean over all labels of the batch.
        step_weights: for each row, the weight of each token of its steps; None: the mean over all of them.
    """
    answers = [
        losses_of(model, states_of(model, answer_embeds(model, row.row, options)), row.row.labels) for row in rows
    ]
    steps = [_step_losses(model, row, options) for row in rows]
    step = reduced(steps, step_weights) if any(map(len, steps)) else torch.zeros(())
    return {"answer": reduced(answers, answer_weights), "step": options.step_factor * step}


def _step_losses(model: PreTrainedModel, row: LotusRow, options: LotusOptions) -> Tensor:
    """Cross entropies [N] of all tokens of a row's steps."""
    if not row.row.num_thoughts:
        return torch.zeros(0)
    made = passes(model, row.row, options)
    return torch.cat(
        [
            losses_of(model, made[block + 1 if options.in_loop else -1].states, labels)
            for block, labels in enumerate(step_labels(row, options))
        ]
    )


def slow_distillation(
    model: PreTrainedModel, teacher: PreTrainedModel, rows: Sequence[CodiRow], options: LotusOptions
) -> Tensor:
    """LOTUS's optional CODI term: the mean over rows, layers and dimensions of SmoothL1 between student and teacher.

    Args:
        model: the student.
        teacher: a frozen model, which reads the written steps.
        rows: sequences of both, and the position of the first label in each, which both read there.
        options: the variants.
    """
    distances = []
    for row in rows:
        students = layers_of(model, answer_embeds(model, row.student, options))
        with torch.no_grad():
            teachers = layers_of(teacher, embedded(teacher, row.teacher.input_ids))
        distances += [
            F.smooth_l1_loss(student[row.student_position], target[row.teacher_position])
            for student, target in zip(students, teachers, strict=True)
        ]
    return torch.stack(distances).mean()


def slow_block_reading(
    model: PreTrainedModel,
    decoder: PreTrainedModel,
    rows: Sequence[LotusRow],
    options: LotusOptions,
    with_context: bool = False,
) -> Tensor:
    """LOTUS's optional term ``ia``: block k's states of pass k + 1, then step k's tokens, which must be predicted.

    Args:
        model: the language model.
        decoder: the model that reads the states: ``model`` itself, or a trained copy.
        rows: the problems of the batch.
        options: the variants.
        with_context: whether the decoder reads the question and the slots of pass k + 1 before the states.

    Returns:
        The mean over all tokens of the batch.
    """
    losses = []
    for row in rows:
        made = passes(model, row.row, options)
        for block, step in enumerate(row.steps):
            if step:
                one, start = made[block + 1], row.row.first_thought + block * options.block
                states = one.states[start : start + options.block]
                before = one.embeds if with_context else one.embeds[:0]
                embeds = torch.cat([before, states, embedded(model, step)])
                labels = [IGNORE] * (len(before) + options.block) + list(step)
                losses.append(losses_of(decoder, states_of(decoder, embeds), labels))
    return torch.cat(losses).mean()


class Text(NamedTuple):
    """What a decoder reads after the states of a row, and which of it it must predict."""

    ids: Sequence[int]
    labels: Sequence[int]


def slow_reading_after_loop(
    model: PreTrainedModel,
    decoder: PreTrainedModel,
    rows: Sequence[LotusRow],
    options: LotusOptions,
    texts: Sequence[Text] | None = None,
) -> Tensor:
    """The variant of ``ia`` with one text for each row: the states of all slots in pass R, then all steps.

    Args:
        model: the language model.
        decoder: the model that reads the states.
        rows: the problems of the batch.
        options: the variants.
        texts: for each row, the text after the states; None: all tokens of its steps.

    Returns:
        The mean over all labels of the batch.
    """
    losses = []
    for index, row in enumerate(rows):
        steps = [token for step in row.steps for token in step]
        text = texts[index] if texts else Text(steps, steps)
        states = passes(model, row.row, options)[-1].states[row.row.first_thought :]
        embeds = torch.cat([states, embedded(model, text.ids)])
        losses.append(losses_of(decoder, states_of(decoder, embeds), [IGNORE] * len(states) + list(text.labels)))
    return torch.cat(losses).mean()


@torch.no_grad()
def slow_readout(model: PreTrainedModel, prompt: Row, options: LotusOptions) -> list[int]:
    """The most likely token of the state before each slot and of the last slot's, in pass R."""
    states = passes(model, prompt, options)[-1].states[prompt.first_thought - 1 :]
    return logits_of(model, states).argmax(-1).tolist()


@torch.no_grad()
def slow_lotus_tokens(
    model: PreTrainedModel, prompt: Row, options: LotusOptions, max_new_tokens: int, eos_id: int
) -> list[int]:
    """The greedy answer to a prompt: question, ``<start>``, slots, ``<end>``."""
    return greedy(model, answer_embeds(model, prompt, options), max_new_tokens, eos_id)
