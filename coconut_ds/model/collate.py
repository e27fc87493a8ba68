"""From layouts to tensors for the latent loop.

Columns of a batch, for rows with up to L thoughts (``Q`` question, ``t`` thought, ``a`` the rest, ``.`` pad)::

    prefix (P)   steps (L)  rest (R)
    Q Q Q . .    t t        a a a
    Q Q Q Q Q    t a        a a .
    Q Q a a .    a a        a . .

The prefix is padded on its right, so its pass needs no mask; each row's first thought is the state of its last real
prefix column. A row with fewer thoughts goes on with its own tokens in the one-position passes. The pads between
prefix and steps are masked from then on; pads at the end are seen by nothing that counts.

Legend: ``B`` rows, ``P``/``L``/``R`` columns as above, ``T`` = P + L + R, ``N`` targets.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from coconut_ds.methods.layout import IGNORE, Layout


@dataclass(frozen=True)
class LatentInputs:
    """What the latent loop reads. Everything is an integer tensor on one device, or a number."""

    prefix_ids: Tensor
    """[B, P] token ids."""
    prefix_last: Tensor
    """[B] last real column of each row's prefix."""
    prefix_read: Tensor
    """[K] positions in the flattened [B·P] prefix whose states anybody reads: those before a thought or a target."""
    step_ids: Tensor
    """[B, L] token ids where a row has no thought."""
    is_thought: Tensor
    """[B, L] bool."""
    rest_ids: Tensor
    """[B, R] token ids; R is 0 when all is in the prefix."""
    attention_mask: Tensor | None
    """[B, T] 1 where a column may be seen; None when no prefix is padded."""
    position_offset: Tensor
    """[B] column minus position for all columns past the prefix: the row's pads."""
    last_position: Tensor
    """[B] position of each row's last token; pads after it take the same, lest they leave the model's context."""
    iterations: int | None = None
    """Passes over all steps at once (Jacobi); None: one pass a step."""

    def to(self, device: torch.device) -> "LatentInputs":
        """A copy on ``device``."""
        values: dict[str, Any] = {f.name: getattr(self, f.name) for f in fields(self)}
        for name, value in values.items():
            values[name] = value.to(device, non_blocking=True) if isinstance(value, Tensor) else value
        return LatentInputs(**values)


@dataclass(frozen=True)
class Targets:
    """Where the loss is. Positions are those that *predict* a target."""

    index: Tensor
    """[N] position in the flattened [B·T] states."""
    ids: Tensor
    """[N] target token."""
    weights: Tensor
    """[N] share in the loss, fp32."""
    most: int
    """Largest N of any rank in this micro step."""

    def to(self, device: torch.device) -> "Targets":
        """A copy on ``device``."""
        index, ids, weights = (tensor.to(device, non_blocking=True) for tensor in (self.index, self.ids, self.weights))
        return Targets(index, ids, weights, self.most)


def collate(
    layouts: Sequence[Layout],
    weights: Sequence[float],
    num_thoughts: int,
    pad_id: int,
    num_targets: int = 0,
    iterations: int | None = None,
) -> tuple[LatentInputs, Targets]:
    """Tensors of one micro batch.

    Args:
        layouts: B sequences; each has at least one token before its first target.
        weights: for each row, the weight of each of its targets.
        num_thoughts: L; at least the largest number of thoughts in ``layouts``, more where other ranks have more.
        pad_id: any token id.
        num_targets: at least the targets in ``layouts``, more where other ranks have more.
        iterations: of all thoughts at once; None: one after the other.
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
    inputs = _inputs(prefix, cuts, read, steps, thoughts, rest, [len(layout) for layout in layouts], iterations)
    shares = torch.tensor(target_weights, dtype=torch.float32)
    return inputs, Targets(torch.tensor(index), torch.tensor(ids), shares, max(num_targets, len(ids)))


def _cuts(layouts: Sequence[Layout], num_thoughts: int) -> list[int]:
    """Length of each row's prefix: up to its first thought; rows without thoughts fill the width the others need."""
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
    iterations: int | None,
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
        iterations=iterations,
    )


def _padded(tokens: Sequence[int], width: int, pad_id: int) -> list[int]:
    return [*tokens, *[pad_id] * (width - len(tokens))]
