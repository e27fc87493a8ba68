"""The language model head and the cross entropy, for a bounded number of targets at a time.

Logits are by far the largest tensors of a small model: some 50,000 numbers for each target, in fp32, and the loss
holds several such tensors. If a micro batch has too many targets, their logits are computed in chunks and recomputed in
the backward pass, so that only one chunk is in memory at a time. Every rank computes as many chunks as the rank with
the most targets, because under ZeRO-3 each chunk gathers the head's weight from all ranks.

Shapes:
    N  targets in the micro batch
    n  targets in one chunk
    D  hidden size
    V  vocabulary size
"""

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from coconut_ds.model.collate import Targets

LOGITS_AT_A_TIME = 2**24
"""Largest number of logits in one chunk: 64 MiB in fp32."""


def target_loss(head: Callable[[Tensor], Tensor], vocabulary: int, states: Tensor, targets: Targets) -> Tensor:
    """Weighted sum of the cross entropies of all targets, a scalar in fp32.

    Args:
        head: computes logits [n, V] in fp32 from states [n, D].
        vocabulary: V.
        states: [N, D] the states that predict the targets.
        targets: the targets, in the order of ``states``.
    """
    size = max(1, LOGITS_AT_A_TIME // vocabulary)
    if targets.max_targets <= size:
        return _loss(head, states, targets.ids, targets.weights)
    losses = []
    for start in range(0, targets.max_targets, size):
        # A rank that has no targets left repeats its first one with weight 0.
        part = slice(start, start + size) if start < len(states) else slice(0, 1)
        weights = targets.weights[part] if start < len(states) else targets.weights[part] * 0
        losses.append(checkpoint(_loss, head, states[part], targets.ids[part], weights, use_reentrant=False))
    return sum(losses[1:], start=losses[0])


def _loss(head: Callable[[Tensor], Tensor], states: Tensor, ids: Tensor, weights: Tensor) -> Tensor:
    return (F.cross_entropy(head(states), ids, reduction="none") * weights).sum()
