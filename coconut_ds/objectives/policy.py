"""The clipped surrogate of GRPO and the KL divergence from a reference, for the tokens of sampled completions.

    ρ = exp(new - old),  surrogate = min(ρ·A, clip(ρ, 1 - ε, 1 + ε')·A),  kl = exp(δ) - δ - 1,  δ = reference - new

``new``, ``old`` and ``reference`` are the log probabilities of a token under the model that learns, the model that
sampled it, and the reference; A is the advantage of its completion. ``kl`` is the estimator k3, which is unbiased under
the current model and never negative.

Shapes:
    n  target tokens
    V  vocabulary size
    D  hidden size
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

Head = Callable[[Tensor], Tensor]
"""Computes logits [n, V] in fp32 from states [n, D]."""


@dataclass(frozen=True)
class Policy:
    """The distribution that tokens were sampled from, as a function of the logits."""

    temperature: float
    banned: Tensor
    """[k] int64, ids of tokens that are never sampled, on the device of the logits."""

    def log_probabilities(self, logits: Tensor) -> Tensor:
        """Natural logarithms [n, V] of the probabilities for logits [n, V]; very small for banned tokens."""
        logits = logits / self.temperature
        # The smallest number, not -inf, whose product with a probability of 0 would not be a number.
        return logits.index_fill(-1, self.banned, torch.finfo(logits.dtype).min).log_softmax(dim=-1)


@dataclass(frozen=True)
class Clipping:
    """Settings of the loss of one token."""

    low: float
    """ε: a ratio below 1 - ε gives no gradient where the advantage is negative."""
    high: float
    """ε': a ratio above 1 + ε' gives no gradient where the advantage is positive."""
    beta: float
    """Factor of the KL divergence."""


class Tokens(NamedTuple):
    """The sampled tokens, and what is known of them. All tensors are [n]."""

    ids: Tensor
    advantages: Tensor
    old: Tensor
    """Read only if the completions are used for more than one update."""
    reference: Tensor
    """Read only if ``beta`` is not 0."""


def chosen(head: Head, policy: Policy, states: Tensor, ids: Tensor) -> Tensor:
    """Log probabilities [n] of the tokens ``ids`` [n], predicted by states [n, D]."""
    return policy.log_probabilities(head(states)).gather(-1, ids[:, None]).squeeze(-1)


def clipped_sums(
    head: Head, policy: Policy, clipping: Clipping, is_first: bool, weights: Tensor, states: Tensor, *columns: Tensor
) -> Tensor:
    """Weighted sums over tokens, [5]: loss of the surrogate, loss of the KL divergence; KL divergence, share of tokens
    whose ratio is clipped, entropy.

    Args:
        head: makes logits.
        policy: the distribution of tokens.
        clipping: settings of the loss.
        is_first: whether this is the only update with these completions. ``old`` is then ``new`` without gradient, and
            the ratio exactly 1.
        weights: [n, 2] weight of each token in the first two sums and in the others.
        states: [n, D] the states that predict the tokens.
        columns: the fields of ``Tokens``.
    """
    tokens = Tokens(*columns)
    every = policy.log_probabilities(head(states))
    new = every.gather(-1, tokens.ids[:, None]).squeeze(-1)
    ratio = torch.exp(new - (new.detach() if is_first else tokens.old))
    limited = ratio.clamp(1 - clipping.low, 1 + clipping.high)
    surrogate = torch.minimum(ratio * tokens.advantages, limited * tokens.advantages)
    kl = torch.zeros_like(new)
    if clipping.beta:
        behind = tokens.reference - new
        kl = torch.exp(behind) - behind - 1
    with torch.no_grad():
        entropy = -(every.exp() * every).sum(dim=-1)
        is_below = (ratio < 1 - clipping.low) & (tokens.advantages < 0)
        is_above = (ratio > 1 + clipping.high) & (tokens.advantages > 0)
        clipped = (is_below | is_above).to(new.dtype)
    own, share = weights.unbind(dim=1)
    sums = (-surrogate * own, clipping.beta * kl * own, kl.detach() * share, clipped * share, entropy * share)
    return torch.stack([each.sum() for each in sums])
