"""What the auxiliary decoder of SIM-CoT must write for each group of thoughts: as token ids, and as tensors.

Shapes:
    n  problems of a global batch
    K  groups of thoughts of the problem that has most
    c  thoughts of a group
    B  rows of a micro batch
    T  columns of the sequences of a micro batch
    G  groups of a micro batch that have a target, at least 1
    W  columns of tokens that the decoder reads
    N  target tokens of a micro batch
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from coconut_ds.methods.base import Ids, join
from coconut_ds.methods.layout import Layout
from coconut_ds.methods.layouts import Integers, Layouts
from coconut_ds.model.collate import Collator, LatentInputs, Targets
from coconut_ds.model.micro_batch import MicroBatch
from coconut_ds.model.packing import packed, viewed
from coconut_ds.model.widths import rounded_up

WIDTHS = 16
"""On CUDA, the number of columns that the decoder reads is a multiple of this (see ``widths.py``); steps are short."""


def group_steps(steps: Sequence[Ids], num_groups: int, end: Ids, missing: Ids = ()) -> list[list[int]]:
    """The tokens that the decoder must write for each group of thoughts of one problem.

    Group k must write step k, and the last group also all later steps, one after the other.

    Args:
        steps: the steps that the thoughts stand for.
        num_groups: number of groups.
        end: what follows the last token of a target: the token that ends a text.
        missing: the whole target of a group for which there is no step; empty: it has none.
    """
    count = min(len(steps), num_groups)
    written = [list(step) for step in steps[:count]]
    if written:
        written[-1] = join(steps[count - 1 :])
    return [[*tokens, *end] for tokens in written] + [list(missing)] * (num_groups - count)


@dataclass(frozen=True)
class StepTargets:
    """The targets of the decoder for the problems of a global batch."""

    layouts: Layouts
    """For each problem, the tokens of its groups, one group after the other. All tokens are targets."""
    lengths: Integers
    """[n, K] number of tokens of each group; 0 where a group has no target, and beyond the groups of a problem."""

    @classmethod
    def of(cls, groups: Sequence[Sequence[Ids]]) -> "StepTargets":
        """The targets of n problems, given for each problem the tokens of each of its groups."""
        lengths = np.zeros((len(groups), max(1, *map(len, groups))), np.int64)
        for row, own in zip(lengths, groups, strict=True):
            row[: len(own)] = [len(tokens) for tokens in own]
        written = [join(own) for own in groups]
        return cls(Layouts.of([Layout(tokens, tokens, len(tokens), 0) for tokens in written]), lengths)


def group_weights(lengths: Integers, reduction: Literal["token", "thought", "row"]) -> NDArray[np.float64]:
    """For each of the K groups, the weight of a target token, so that the weighted sum is the mean that is asked for.

    Args:
        lengths: [rows, K] see ``StepTargets``; the rows are those over which the mean is taken.
        reduction: see ``SimCotConfig.step_reduction``.
    """
    groups = lengths.shape[1]
    counts = lengths.sum(axis=0)
    if reduction == "token":
        return np.full(groups, 1 / max(1, counts.sum()))
    if reduction == "thought":
        return 1 / np.maximum(1, counts * np.count_nonzero(counts))
    return np.full(groups, 1 / max(1, int(np.count_nonzero(lengths))))


@dataclass(frozen=True)
class StepInputs:
    """What the decoder reads; padding is on the right."""

    thoughts: Tensor
    """[G, c] position in the flattened [B·T] states of the state that becomes each thought."""
    ids: Tensor
    """[G, W] the target tokens without the last one, which no target follows."""


@dataclass(frozen=True)
class StepBatch:
    """The decoder's part of a micro batch. All tensors are views of one buffer, as those of ``collate.Batch``."""

    inputs: StepInputs
    targets: Targets
    """``index`` counts in the flattened [G·(c + W)] states of the decoder."""
    buffer: Tensor

    def to(self, device: torch.device) -> "StepBatch":
        """The same tensors on ``device``; the host does not wait for the copy."""
        if self.buffer.device == device:
            return self
        buffer = self.buffer.to(device, non_blocking=True)
        return StepBatch(viewed(self.inputs, buffer), viewed(self.targets, buffer), buffer)


def collate_steps(
    collator: Collator,
    lengths: Integers,
    view: MicroBatch,
    weights: NDArray[np.float64],
    inputs: LatentInputs,
    group_size: int,
) -> StepBatch:
    """The tensors of the decoder's part of a micro batch, in the memory of the host.

    A micro batch without targets gets one with weight 0, so that the decoder always runs: ZeRO expects a gradient of
    every parameter, and the same passes on all ranks.

    Args:
        collator: of the run.
        lengths: see ``StepTargets``.
        view: the rows of this micro batch in ``StepTargets.layouts``.
        weights: [K] weight of each target token, by group.
        inputs: what the latent loop reads for the same rows, in the memory of the host.
        group_size: c.
    """
    lengths, tokens = lengths[view.rows], view.layouts.input_ids
    row, group = np.nonzero(lengths)
    sizes, thought = lengths[row, group], group[:, None] * group_size + np.arange(group_size)
    if not len(row):
        row, group, sizes = np.zeros((3, 1), np.int64)
        sizes, tokens, thought = sizes + 1, np.array([collator.pad_id]), np.zeros((1, group_size), np.int64)
        weights = weights * 0
    width = _width(max(1, int(sizes.max()) - 1), collator, group_size)
    ids = np.full((len(sizes), width), collator.pad_id)
    ends = np.cumsum(sizes)
    ids[np.arange(width) < sizes[:, None] - 1] = np.delete(tokens, ends - 1)
    owner = np.repeat(np.arange(len(sizes)), sizes)
    place = np.arange(len(tokens)) - (ends - sizes)[owner]
    prefix = inputs.prefix_ids.shape[1]
    columns = prefix + inputs.step_ids.shape[1] + inputs.rest_ids.shape[1]
    before = np.where(thought == 0, inputs.prefix_last.numpy()[row][:, None], prefix + thought - 1)
    buffer, tensors = packed(
        {
            np.dtype(np.int64): {
                "thoughts": row[:, None] * columns + before,
                "step_ids": ids,
                "index": owner * (group_size + width) + group_size - 1 + place,
                "ids": tokens,
            },
            np.dtype(np.float32): {"weights": weights[group][owner]},
        },
        collator.pinned,
    )
    targets = Targets(tensors["index"], tensors["ids"], tensors["weights"], max(view.num_targets, len(tokens)))
    return StepBatch(StepInputs(tensors["thoughts"], tensors["step_ids"]), targets, buffer)


def _width(longest: int, collator: Collator, group_size: int) -> int:
    """The number of columns of tokens, at least ``longest``."""
    rounded = rounded_up(longest, min(collator.width_multiple, WIDTHS))
    if collator.max_width is None:
        return rounded
    # Positions may start at 1 (``SimCot.first_position``).
    return max(longest, min(rounded, collator.max_width - group_size - 1))
