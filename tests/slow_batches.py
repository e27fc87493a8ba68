"""Planning and collating, slow and obvious: one token after the other, in lists."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch

from coconut_ds.methods.layout import IGNORE, Layout
from coconut_ds.methods.parallel import Parallel
from coconut_ds.model.collate import LatentInputs, Targets
from coconut_ds.training.batches import BatchGeometry


class SlowMicroBatch(NamedTuple):
    """See ``coconut_ds.training.batches.MicroBatch``."""

    layouts: list[Layout]
    weights: list[float]
    num_thoughts: int
    num_targets: int


def slow_plan(
    layouts: Sequence[Layout], geometry: BatchGeometry, rank: int, loss_reduction: str
) -> list[SlowMicroBatch]:
    """The micro batches of ``rank`` for one global batch.

    The loss of an update is the sum of weight × cross entropy over all targets of all ranks and micro batches.
    ``token`` gives each target of the global batch the weight 1 / number of targets; ``reference`` computes the mean
    over micro batches of their token means, as the reference implementation does.

    Args:
        layouts: the sequences of the global batch; may be fewer than ``geometry.global_batch_size``.
        geometry: how the batch is divided.
        rank: the rank to plan for.
        loss_reduction: ``token`` or ``reference``.
    """
    assert layouts, "a global batch holds at least one problem"
    if loss_reduction == "token":
        # Sequences with similar numbers of thoughts and tokens need less padding. Under ``reference``, sorting would
        # change the loss: a mean of means depends on which sequences share a micro batch.
        layouts = sorted(layouts, key=lambda layout: (layout.num_thoughts, len(layout)))
    micro, world = geometry.micro_batch_size, geometry.world_size
    num_steps = math.ceil(len(layouts) / (micro * world))
    chunks = {
        (step, other): layouts[(step * world + other) * micro : (step * world + other + 1) * micro]
        for step in range(num_steps)
        for other in range(world)
    }
    total = sum(layout.num_targets for layout in layouts)
    filled = sum(bool(chunk) for chunk in chunks.values())
    plan = []
    for step in range(num_steps):
        mine = chunks[step, rank]
        if loss_reduction == "token":
            weight = 1 / total
        else:
            weight = 1 / (filled * sum(layout.num_targets for layout in mine)) if mine else 0.0
        others = [chunks[step, other] for other in range(world)]
        num_thoughts = max(layout.num_thoughts for chunk in others for layout in chunk)
        num_targets = max(sum(layout.num_targets for layout in chunk) for chunk in others)
        rows = list(mine) or [chunks[step, 0][0]]
        plan.append(SlowMicroBatch(rows, [weight if mine else 0.0] * len(rows), num_thoughts, num_targets))
    return plan


def slow_collate(
    layouts: Sequence[Layout],
    weights: Sequence[float],
    num_thoughts: int,
    pad_id: int,
    num_targets: int = 0,
    parallel: Parallel | None = None,
) -> tuple[LatentInputs, Targets]:
    """Builds the tensors of one micro batch, on the CPU.

    Args:
        layouts: B sequences; each has at least one token before its first target.
        weights: [B] for each row, the weight of each of its targets in the loss.
        num_thoughts: L; the largest number of thoughts in ``layouts``, or in the micro batch of any other rank.
        pad_id: any token id; padding never affects the results.
        num_targets: N of the rank with the most targets; may be 0 if this is the only rank.
        parallel: see ``LatentInputs``.
    """
    cuts = _cuts(layouts, num_thoughts)
    width = max(cuts)
    rest_width = max((len(layout) - cut - num_thoughts for layout, cut in zip(layouts, cuts, strict=True)), default=0)
    rest_width = max(rest_width, 1) if num_thoughts else 0
    prefix, steps, rest, thoughts = [], [], [], []
    index, ids, target_weights, read = [], [], [], []
    for row, (layout, cut, weight) in enumerate(zip(layouts, cuts, weights, strict=True)):
        tokens = layout.input_ids
        prefix.append(_padded(tokens[:cut], width, pad_id))
        steps.append(_padded(tokens[cut : cut + num_thoughts], num_thoughts, pad_id))
        rest.append(_padded(tokens[cut + num_thoughts :], rest_width, pad_id))
        thoughts.append([column < layout.num_thoughts for column in range(num_thoughts)])
        start = row * (width + num_thoughts + rest_width)
        in_prefix = {cut - 1}
        for position, label in enumerate(layout.labels):
            if label != IGNORE:
                before = position - 1
                if before < cut:
                    in_prefix.add(before)
                index.append(start + (before if before < cut else before - cut + width))
                ids.append(label)
                target_weights.append(weight)
        read += [row * width + position for position in sorted(in_prefix)]
    inputs = _inputs(prefix, cuts, read, steps, thoughts, rest, [len(layout) for layout in layouts], parallel)
    shares = torch.tensor(target_weights, dtype=torch.float32)
    return inputs, Targets(torch.tensor(index), torch.tensor(ids), shares, max(num_targets, len(ids)))


def _cuts(layouts: Sequence[Layout], num_thoughts: int) -> list[int]:
    """The length of each row's prefix.

    It ends before the row's first thought. A row without thoughts puts as many of its tokens into the prefix as the
    prefixes of the other rows make room for.
    """
    if num_thoughts == 0:
        return [len(layout) for layout in layouts]
    width = max((layout.first_thought for layout in layouts if layout.num_thoughts), default=1)
    return [layout.first_thought if layout.num_thoughts else min(len(layout), width) for layout in layouts]


def _inputs(
    prefix: list[list[int]],
    cuts: list[int],
    read: list[int],
    steps: list[list[int]],
    thoughts: list[list[bool]],
    rest: list[list[int]],
    lengths: list[int],
    parallel: Parallel | None,
) -> LatentInputs:
    width, columns = len(prefix[0]), len(prefix[0]) + len(steps[0]) + len(rest[0])
    ends = torch.tensor(cuts)
    mask = None
    if min(cuts) < width and columns > width:
        place = torch.arange(columns)
        mask = ((place < ends[:, None]) | (place >= width)).long()
    size = len(prefix)
    return LatentInputs(
        prefix_ids=torch.tensor(prefix),
        prefix_last=ends - 1,
        prefix_read=torch.tensor(read),
        step_ids=torch.tensor(steps, dtype=torch.long).reshape(size, -1),
        is_thought=torch.tensor(thoughts, dtype=torch.bool).reshape(size, -1),
        rest_ids=torch.tensor(rest, dtype=torch.long).reshape(size, -1),
        attention_mask=mask,
        position_offset=width - ends,
        last_position=torch.tensor(lengths) - 1,
        parallel=parallel,
    )


def _padded(tokens: Sequence[int], width: int, pad_id: int) -> list[int]:
    return [*tokens, *[pad_id] * (width - len(tokens))]
