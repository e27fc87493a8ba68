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
from functools import partial

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
    compute = partial(_loss, head)
    return sum_over_targets(compute, vocabulary, targets.max_targets, targets.weights, states, targets.ids)


def sum_over_targets(
    compute: Callable[..., Tensor], vocabulary: int, max_targets: int, weights: Tensor, *columns: Tensor
) -> Tensor:
    """The sum of ``compute(weights, *columns)`` over the chunks of the targets; each chunk is recomputed backwards.

    Args:
        compute: sums something over n targets, with weights [n]; its result is 0 if all weights are 0.
        vocabulary: V, the number of logits that ``compute`` makes for each target.
        max_targets: the largest N of any rank (``Targets.max_targets``).
        weights: [N] or [N, …] weight of each target.
        columns: tensors [N, …] of which ``compute`` reads the rows of a chunk.
    """
    size = max(1, LOGITS_AT_A_TIME // vocabulary)
    if max_targets <= size:
        return compute(weights, *columns)
    sums = []
    for start in range(0, max_targets, size):
        # A rank that has no targets left repeats its first one with weight 0.
        part = slice(start, start + size) if start < len(weights) else slice(0, 1)
        own = weights[part] if start < len(weights) else weights[part] * 0
        sums.append(checkpoint(compute, own, *(column[part] for column in columns), use_reentrant=False))
    return sum(sums[1:], start=sums[0])


def _loss(head: Callable[[Tensor], Tensor], weights: Tensor, states: Tensor, ids: Tensor) -> Tensor:
    return (F.cross_entropy(head(states), ids, reduction="none") * weights).sum()
