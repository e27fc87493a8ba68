"""Head and loss at targets, a bounded number of logits at a time.

Logits are by far the widest tensors of a small model: 50,000 for each target, in fp32, several times. Where all of a
batch's are too many they are computed in chunks, and again when their gradient comes, so that one chunk is there at a
time. Every rank makes as many chunks as the one with most targets: under ZeRO-3 each gathers the head.

Legend: ``N`` targets, ``D`` hidden size, ``V`` vocabulary.
"""

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from coconut_ds.model.collate import Targets

LOGITS_AT_A_TIME = 2**24
"""64 MiB in fp32."""


def target_loss(head: Callable[[Tensor], Tensor], vocabulary: int, states: Tensor, targets: Targets) -> Tensor:
    """Weighted sum of the cross entropies of all targets: a scalar in fp32.

    Args:
        head: logits [n, V] in fp32 of states [n, D].
        vocabulary: V.
        states: [N, D] those that predict a target.
        targets: what they predict.
    """
    size = max(1, LOGITS_AT_A_TIME // vocabulary)
    if targets.most <= size:
        return _loss(head, states, targets.ids, targets.weights)
    losses = []
    for start in range(0, targets.most, size):
        # A rank that has run out of targets goes on with its first one, which then counts nothing.
        part = slice(start, start + size) if start < len(states) else slice(0, 1)
        weights = targets.weights[part] if start < len(states) else targets.weights[part] * 0
        losses.append(checkpoint(_loss, head, states[part], targets.ids[part], weights, use_reentrant=False))
    return sum(losses[1:], start=losses[0])


def _loss(head: Callable[[Tensor], Tensor], states: Tensor, ids: Tensor, weights: Tensor) -> Tensor:
    return (F.cross_entropy(head(states), ids, reduction="none") * weights).sum()
