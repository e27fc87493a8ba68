"""Collates layouts into the tensors that the latent loop reads.

The first thoughts of all rows are aligned in one column, so that all rows think in the same passes. For rows with up
to L thoughts (``Q`` question token, ``t`` thought, ``a`` later token, ``.`` padding)::

    prefix (P)   steps (L)  rest (R)
    Q Q Q . .    t t        a a a
    Q Q Q Q Q    t a        a a .
    Q Q a a .    a a        a . .

* The prefix is padded on its right, so its pass needs no attention mask. The state at a row's last real prefix column
  is the row's first thought, if it has one.
* A row with fewer than L thoughts reads its own next tokens in the remaining one-position passes.
* Padding between prefix and steps is masked in all passes after the prefix. Padding at the end of a row needs no mask:
  no real position comes after it.

Shapes:
    B  rows (sequences) in the batch
    P  columns of the prefix
    L  columns of the steps, one for each one-position pass
    R  columns of the rest
    T  P + L + R
    K  prefix positions whose states are needed
    N  targets in the batch
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from coconut_ds.methods.layout import IGNORE, Layout


@dataclass(frozen=True)
class LatentInputs:
    """The input of the latent loop: integer and boolean tensors on one device, and the number of Jacobi passes."""

    prefix_ids: Tensor
    """[B, P] token ids."""
    prefix_last: Tensor
    """[B] last real column of each row's prefix."""
    prefix_read: Tensor
    """[K] positions in the flattened [B·P] prefix whose states are used: the last real one of each row, which may be
    its first thought, and those that predict a target."""
    step_ids: Tensor
    """[B, L] token ids; where a row has a thought, the id of the thought marker."""
    is_thought: Tensor
    """[B, L] bool, true where the input is a thought and not a token."""
    rest_ids: Tensor
    """[B, R] token ids; R is 0 when the prefix holds whole sequences."""
    attention_mask: Tensor | None
    """[B, T] 1 where a column may be attended to, 0 for padding in the prefix; None when no prefix is padded."""
    position_offset: Tensor
    """[B] what to subtract from a column after the prefix to get its position: the row's padding in the prefix."""
    last_position: Tensor
    """[B] position of each row's last token. Padding after it gets the same position, so that no position exceeds the
    model's context length."""
    iterations: int | None = None
    """Number of Jacobi passes over all steps at once; None: one pass for each step."""

    def to(self, device: torch.device) -> "LatentInputs":
        """A copy on ``device``."""
        values: dict[str, Any] = {f.name: getattr(self, f.name) for f in fields(self)}
        for name, value in values.items():
            values[name] = value.to(device, non_blocking=True) if isinstance(value, Tensor) else value
        return LatentInputs(**values)


@dataclass(frozen=True)
class Targets:
    """The targets of the loss. A target at position i is predicted by the state at position i - 1."""

    index: Tensor
    """[N] position in the flattened [B·T] states of the state that *predicts* each target."""
    ids: Tensor
    """[N] token id of each target."""
    weights: Tensor
    """[N] weight of each target in the loss, fp32."""
    max_targets: int
    """The largest N of any rank in this micro step."""

    def to(self, device: torch.device) -> "Targets":
        """A copy on ``device``."""
        index, ids, weights = (tensor.to(device, non_blocking=True) for tensor in (self.index, self.ids, self.weights))
        return Targets(index, ids, weights, self.max_targets)


def collate(
    layouts: Sequence[Layout],
    weights: Sequence[float],
    num_thoughts: int,
    pad_id: int,
    num_targets: int = 0,
    iterations: int | None = None,
) -> tuple[LatentInputs, Targets]:
    """Builds the tensors of one micro batch, on the CPU.

    Args:
        layouts: B sequences; each has at least one token before its first target.
        weights: [B] for each row, the weight of each of its targets in the loss.
        num_thoughts: L; the largest number of thoughts in ``layouts``, or in the micro batch of any other rank.
        pad_id: any token id; padding never affects the results.
        num_targets: N of the rank with the most targets; may be 0 if this is the only rank.
        iterations: see ``LatentInputs``.
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
