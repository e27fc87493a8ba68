"""Reads the tokens of a problem's hops from the states that become its thoughts: as targets, and as measures.

Thought i of a sequence is the state at the position before it. Where c thoughts or pause tokens replace a step, those
of step i belong to hop i. The model's head reads a state, and the result is compared with the *target* of the hop and
with its *frontier* (``data.hops``).

Shapes:
    B  sequences
    N  states that are read
    F  tokens of the hop that has most
    V  vocabulary size
    D  hidden size
    H  hops that are counted
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from coconut_ds.data.token_arrays import Shares
from coconut_ds.methods.layout import IGNORE
from coconut_ds.methods.layouts import Integers, Layouts, spans
from coconut_ds.model.collate import Targets
from coconut_ds.model.loss import LOGITS_AT_A_TIME, sum_over_targets
from coconut_ds.model.micro_batch import MicroBatch
from coconut_ds.model.packing import packed, viewed

WhichThought = Literal["last", "first", "all"]
"""Which of the c thoughts of a step are read."""
MEASURES = ("loss", "in_frontier", "mass")
"""What is measured at a state: the cross entropy against the frontier in nats, whether the likeliest token is in the
frontier (0 or 1), and the probability of the frontier's tokens together."""


class Reading(NamedTuple):
    """A state that is read."""

    position: int
    """The position after the state, within its sequence: that of the thought which the state becomes."""
    hop: int
    """The hop, from 1."""
    target: Shares
    """What the state should predict; empty: nothing."""
    frontier: Shares
    """What it is measured against; empty: nothing."""


def thought_positions(
    layouts: Layouts, block: int, which: WhichThought, pause: int | None = None
) -> list[list[tuple[int, int]]]:
    """For each sequence, the positions of the thoughts that are read, and the hop of each, from 1.

    Args:
        layouts: B sequences.
        block: c, the number of thoughts or pause tokens of a step.
        which: which of them are read.
        pause: id of the pause token if the latents are pause tokens.
    """
    places = {"last": [block - 1], "first": [0], "all": list(range(block))}[which]
    found = []
    for row, (start, first, count) in enumerate(
        zip(layouts.starts.tolist(), layouts.first_thought.tolist(), layouts.num_thoughts.tolist(), strict=False)
    ):
        if pause is not None:
            pauses = np.flatnonzero(layouts.input_ids[start : layouts.starts[row + 1]] == pause)
            first, count = (int(pauses[0]), len(pauses)) if len(pauses) else (0, 0)
        found.append([(first + hop * block + place, hop + 1) for hop in range(count // block) for place in places])
    return found


@dataclass(frozen=True)
class HopTargets:
    """The states that are read in B sequences."""

    layouts: Layouts
    """The sequences, with a label at the position of each reading (one of its tokens), and no other labels."""
    ids: Integers
    """[N, F] the tokens of each reading, padded with 0."""
    targets: NDArray[np.float32]
    """[N, F] share of each token in the target; 0 for padding."""
    frontier: NDArray[np.float32]
    """[N, F] share of each token in the frontier; 0 for padding."""
    hops: Integers
    """[N] the hop of each reading, from 1."""

    @classmethod
    def of(cls, layouts: Layouts, readings: Sequence[Sequence[Reading]]) -> "HopTargets":
        """The readings of each sequence, in the order of their positions; those without any token are left out."""
        own = [[one for one in some if one.target or one.frontier] for some in readings]
        flat = [one for some in own for one in some]
        tokens = [list(dict.fromkeys([*one.target, *one.frontier])) for one in flat]
        size = len(flat), max(1, *map(len, tokens)) if tokens else 1
        ids = np.zeros(size, np.int64)
        targets, frontier = np.zeros(size, np.float32), np.zeros(size, np.float32)
        for row, (one, names) in enumerate(zip(flat, tokens, strict=True)):
            ids[row, : len(names)] = names
            targets[row, : len(names)] = [one.target.get(token, 0.0) for token in names]
            frontier[row, : len(names)] = [one.frontier.get(token, 0.0) for token in names]
        labels = np.full(len(layouts.labels), IGNORE)
        counts = np.array([len(some) for some in own], np.int64)
        places = np.array([one.position for one in flat], np.int64) + np.repeat(layouts.starts[:-1], counts)
        labels[places] = ids[:, 0]
        hops = np.array([one.hop for one in flat], np.int64)
        return cls(replace(layouts, labels=labels, num_targets=counts), ids, targets, frontier, hops)

    def collate(self, places: Targets, view: MicroBatch, pinned: bool, num_hops: int = 0) -> "HopBatch":
        """The tensors of a micro batch, in the memory of the host.

        Args:
            places: the targets of ``view`` as ``Collator.collate`` makes them.
            view: rows of ``layouts``.
            pinned: see ``Collator``.
            num_hops: H; later hops are not counted.
        """
        counts = self.layouts.num_targets
        rows = spans((np.cumsum(counts) - counts)[view.rows], counts[view.rows])
        has_frontier = self.frontier[rows].any(axis=1, keepdims=True)
        counted = (self.hops[rows, None] == np.arange(1, num_hops + 1)) & has_frontier
        buffer, tensors = packed(
            {
                np.dtype(np.int64): {"index": places.index.numpy(), "ids": self.ids[rows]},
                np.dtype(np.float32): {
                    "weights": places.weights.numpy(),
                    "shares": self.targets[rows],
                    "frontier": self.frontier[rows],
                    "counted": counted,
                },
            },
            pinned,
        )
        index, weights = tensors.pop("index"), tensors.pop("weights")
        return HopBatch(Targets(index, index, weights, places.max_targets), HopTable(**tensors), buffer)


@dataclass(frozen=True)
class HopTable:
    """The tokens of the readings of a micro batch."""

    ids: Tensor
    """[N, F] see ``HopTargets``."""
    shares: Tensor
    """[N, F] ``HopTargets.targets``."""
    frontier: Tensor
    """[N, F] see ``HopTargets``."""
    counted: Tensor
    """[N, H] 1 where a reading with a frontier belongs to a hop, else 0."""


@dataclass(frozen=True)
class HopBatch:
    """The readings of a micro batch. All tensors are views of one buffer, as those of ``collate.Batch``."""

    targets: Targets
    """Index and weight of each state. Its ``ids`` are not used."""
    table: HopTable
    buffer: Tensor

    def to(self, device: torch.device) -> "HopBatch":
        """The same tensors on ``device``; the host does not wait for the copy."""
        if self.buffer.device == device:
            return self
        buffer = self.buffer.to(device, non_blocking=True)
        return HopBatch(viewed(self.targets, buffer), viewed(self.table, buffer), buffer)


Head = Callable[[Tensor], Tensor]
"""Computes logits [n, V] in fp32 from states [n, D]."""


def hop_sums(head: Head, vocabulary: int, states: Tensor, batch: HopBatch) -> Tensor:
    """The loss of the readings, and sums of the measures by hop: [1 + 4·H] in fp32.

    The loss is the weighted sum of the cross entropies against the targets. For each hop follow the sums of
    ``MEASURES``, and the number of states that are counted. Only the loss has a gradient.

    Args:
        head: the model's head.
        vocabulary: V.
        states: [B, T, D] the states of the micro batch.
        batch: the readings.
    """
    table, targets = batch.table, batch.targets
    read = states.flatten(0, 1)[targets.index]
    columns = (read, table.ids, table.shares, table.frontier, table.counted)
    return sum_over_targets(partial(_sums, head), vocabulary, targets.max_targets, targets.weights, *columns)


def _sums(
    head: Head, weights: Tensor, states: Tensor, ids: Tensor, shares: Tensor, frontier: Tensor, counted: Tensor
) -> Tensor:
    logits = head(states)
    log_probabilities = logits.log_softmax(-1).gather(1, ids)
    loss = -((log_probabilities * shares).sum(dim=1) * weights).sum()
    values = _measured(logits.detach(), log_probabilities.detach(), ids, frontier)
    with_count = torch.cat([values, torch.ones_like(values[:, :1])], dim=1)
    # A row or a chunk that a rank computes only because others have more to do has weight 0.
    sums = (counted * (weights != 0).unsqueeze(1)).T @ with_count
    return torch.cat([loss.unsqueeze(0), sums.flatten()])


def hop_values(head: Head, vocabulary: int, states: Tensor, batch: HopBatch) -> Tensor:
    """The measures [N, 3] of each reading; arguments as for ``hop_sums``. All ranks compute equally many logits."""
    table, index = batch.table, batch.targets.index
    read, size = states.flatten(0, 1)[index], max(1, LOGITS_AT_A_TIME // vocabulary)
    found = [read.new_zeros((0, len(MEASURES)), dtype=torch.float32)]
    for start in range(0, batch.targets.max_targets, size):
        part = slice(start, start + size)
        logits = head(read[part])
        own = logits.log_softmax(-1).gather(1, table.ids[part])
        found.append(_measured(logits, own, table.ids[part], table.frontier[part]))
    return torch.cat(found)


def _measured(logits: Tensor, log_probabilities: Tensor, ids: Tensor, frontier: Tensor) -> Tensor:
    """``MEASURES`` [N, 3] of N states.

    Args:
        logits: [N, V].
        log_probabilities: [N, F] of the tokens ``ids``.
        ids: [N, F] different tokens, padded.
        frontier: [N, F] their shares in the frontier.
    """
    belongs = frontier > 0
    loss = -(log_probabilities * frontier).sum(dim=1)
    inside = ((ids == logits.argmax(dim=1, keepdim=True)) & belongs).any(dim=1)
    mass = (log_probabilities.exp() * belongs).sum(dim=1)
    return torch.stack([loss, inside.float(), mass], dim=1)
