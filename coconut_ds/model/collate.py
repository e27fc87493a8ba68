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
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from coconut_ds.methods.layout import IGNORE, Layout
from coconut_ds.methods.layouts import Layouts
from coconut_ds.methods.parallel import Parallel
from coconut_ds.model.micro_batch import MicroBatch
from coconut_ds.model.packing import packed, viewed
from coconut_ds.model.widths import CUDA_WIDTHS, rounded_up


@dataclass(frozen=True)
class LatentInputs:
    """The input of the latent loop: integer and boolean tensors on one device, and the way of thinking."""

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
    parallel: Parallel | None = None
    """How all thoughts are computed at once; None: one after another, in one pass for each step."""


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


class _Pair(NamedTuple):
    inputs: LatentInputs
    targets: Targets


class Batch(_Pair):
    """A micro batch: the pair (inputs, targets). All their tensors are views of one buffer, which moves in one copy.

    Nothing may write to the buffer: the copy to a GPU may still be running when ``to`` returns. torch's allocator of
    pinned memory gives the memory of a buffer to a later one only when the copies from it are complete.
    """

    buffer: Tensor
    """[bytes] uint8, pinned if the batch was collated for CUDA."""

    @classmethod
    def of(cls, inputs: LatentInputs, targets: Targets, buffer: Tensor) -> "Batch":
        """The batch whose tensors are views of ``buffer``."""
        batch = cls(inputs, targets)
        batch.buffer = buffer
        return batch

    def to(self, device: torch.device) -> "Batch":
        """The batch on ``device``: itself if it is there, otherwise a copy, for which the host does not wait."""
        if self.buffer.device == device:
            return self
        buffer = self.buffer.to(device, non_blocking=True)
        return Batch.of(viewed(self.inputs, buffer), viewed(self.targets, buffer), buffer)


@dataclass(frozen=True)
class Collator:
    """Builds the tensors of micro batches, in the memory of the host."""

    pad_id: int
    """Any token id; padding never affects the results."""
    parallel: Parallel | None = None
    """See ``LatentInputs``."""
    width_multiple: int = 1
    """P is rounded up to a multiple of this (see ``widths.py``)."""
    max_width: int | None = None
    """The largest P to round up to, the model's context length."""
    pinned: bool = False
    """Whether the tensors are in pinned memory, from which they are copied to a GPU while the host does other work."""

    @classmethod
    def for_device(
        cls, device: torch.device, pad_id: int, parallel: Parallel | None, max_width: int | None
    ) -> "Collator":
        """The collator of batches for training on ``device``."""
        multiple = CUDA_WIDTHS if device.type == "cuda" else 1
        return cls(pad_id, parallel, multiple, max_width, pinned=device.type != "cpu")

    def __call__(
        self,
        layouts: Sequence[Layout],
        weights: Sequence[float],
        num_thoughts: int,
        num_targets: int = 0,
        also: Layouts | None = None,
    ) -> Batch:
        """The tensors of one micro batch.

        Args:
            layouts: B sequences; each has at least one token before its first target.
            weights: [B] for each row, the weight of each of its targets in the loss.
            num_thoughts: L; the largest number of thoughts in ``layouts``, or in the micro batch of any other rank.
            num_targets: N of the rank with the most targets; may be 0 if this is the only rank.
            also: the same sequences with other labels. The states that predict these are computed too.
        """
        rows = Layouts.of(layouts)
        cuts = _cuts(rows, num_thoughts)
        width = self._width(int(cuts.max()))
        rest = max(int((rows.lengths - cuts).max()) - num_thoughts, 1) if num_thoughts else 0
        size, columns = len(rows), width + num_thoughts + rest
        place, cut = np.arange(columns), cuts[:, None]
        is_after, is_prefix = place >= width, place < cut
        is_token = is_prefix | (is_after & (place < rows.lengths[:, None] - cut + width))
        ids = np.full((size, columns), self.pad_id)
        ids[is_token] = rows.input_ids
        target = np.flatnonzero(rows.labels != IGNORE)
        row, column = _predictors(rows, target, cuts, width)
        is_read, in_prefix = np.zeros((size, width), bool), column < width
        is_read[np.arange(size), cuts - 1] = True
        is_read[row[in_prefix], column[in_prefix]] = True
        if also is not None:
            others = _predictors(also, np.flatnonzero(also.labels != IGNORE), cuts, width)
            is_read[tuple(each[others[1] < width] for each in others)] = True
        arrays: dict[str, NDArray[Any]] = {
            "prefix_ids": ids[:, :width],
            "prefix_last": cuts - 1,
            "prefix_read": np.flatnonzero(is_read),
            "step_ids": ids[:, width : width + num_thoughts],
            "rest_ids": ids[:, width + num_thoughts :],
            "position_offset": width - cuts,
            "last_position": rows.lengths - 1,
            "index": row * columns + column,
            "ids": rows.labels[target],
        }
        if cuts.min() < width < columns:
            arrays["attention_mask"] = is_prefix | is_after
        buffer, tensors = packed(
            {
                np.dtype(np.int64): arrays,
                np.dtype(np.float32): {"weights": np.asarray(weights, np.float32)[row]},
                np.dtype(np.bool_): {"is_thought": np.arange(num_thoughts) < rows.num_thoughts[:, None]},
            },
            self.pinned,
        )
        index, target_ids, shares = (tensors.pop(name) for name in ("index", "ids", "weights"))
        targets = Targets(index, target_ids, shares, max(num_targets, len(row)))
        mask = tensors.pop("attention_mask", None)
        inputs = LatentInputs(**tensors, attention_mask=mask, parallel=self.parallel)
        return Batch.of(inputs, targets, buffer)

    def collate(self, batch: MicroBatch, also: Layouts | None = None) -> Batch:
        """The tensors of a planned micro batch; ``also``: see ``__call__``."""
        return self(batch.layouts, batch.weights, batch.num_thoughts, batch.num_targets, also)

    def _width(self, longest: int) -> int:
        """The number of columns of the prefix, at least ``longest``."""
        rounded = rounded_up(longest, self.width_multiple)
        return rounded if self.max_width is None else max(longest, min(rounded, self.max_width))


def collate(
    layouts: Sequence[Layout],
    weights: Sequence[float],
    num_thoughts: int,
    pad_id: int,
    num_targets: int = 0,
    parallel: Parallel | None = None,
) -> Batch:
    """The tensors of one micro batch, on the CPU; see ``Collator``."""
    return Collator(pad_id, parallel)(layouts, weights, num_thoughts, num_targets)


def _predictors(
    rows: Layouts, target: NDArray[np.int64], cuts: NDArray[np.int64], width: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """[N] row and column of the token before each target, whose state predicts it.

    Args:
        rows: the sequences.
        target: [N] index of each target in ``rows.labels``.
        cuts: [B] the length of each row's prefix.
        width: P.
    """
    row = np.searchsorted(rows.starts, target, side="right") - 1
    before = target - rows.starts[row] - 1
    return row, np.where(before < cuts[row], before, before - cuts[row] + width)


def _cuts(rows: Layouts, num_thoughts: int) -> NDArray[np.int64]:
    """The length of each row's prefix.

    It ends before the row's first thought. A row without thoughts puts as many of its tokens into the prefix as the
    prefixes of the other rows make room for.
    """
    if num_thoughts == 0:
        return rows.lengths
    thinks = rows.num_thoughts > 0
    width = rows.first_thought[thinks].max() if thinks.any() else 1
    return np.where(thinks, rows.first_thought, np.minimum(rows.lengths, width))
