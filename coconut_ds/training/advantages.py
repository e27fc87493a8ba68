"""Advantages and weights of completions in GRPO. Plain arithmetic.

Shapes:
    P  problems of a batch
    G  completions of each problem
    K  completions of a mini-batch
"""

import numpy as np
from numpy.typing import NDArray

from coconut_ds.settings.data import DataConfig
from coconut_ds.settings.objective import GrpoConfig

Floats = NDArray[np.float64]
SMALL = 1e-4
"""Added to standard deviations, as in trl."""


def advantages(rewards: Floats, scale: str) -> Floats:
    """[P, G] reward less the mean of the problem's rewards, and scaled.

    0 for all completions of a problem whose rewards are all equal.

    Args:
        rewards: [P, G].
        scale: ``objective.grpo.scale_rewards``.
    """
    centred = np.where(is_mixed(rewards)[:, None], rewards - rewards.mean(axis=1, keepdims=True), 0.0)
    if scale == "group":
        centred /= rewards.std(axis=1, ddof=1, keepdims=True) + SMALL
    elif scale == "batch":
        centred /= rewards.std(ddof=1) + SMALL
    return centred


def is_mixed(rewards: Floats) -> NDArray[np.bool_]:
    """[P] whether the completions of a problem have different rewards, of [P, G]."""
    mixed: NDArray[np.bool_] = rewards.max(axis=1) > rewards.min(axis=1)
    return mixed


def token_weights(lengths: Floats, count: float, tokens: float, longest: int, loss_type: str) -> Floats:
    """[K] the weight of each token of each completion in the loss.

    Args:
        lengths: [K] number of tokens of each completion that the loss reads.
        count: number of completions that the mean is taken over, with those that do not contribute.
        tokens: number of their tokens.
        longest: largest number of tokens that a completion may have.
        loss_type: ``objective.grpo.loss_type``.
    """
    ones = np.ones(len(lengths))
    return {
        "sum": ones / count,
        "grpo": ones / (count * lengths),
        "bnpo": ones / tokens,
        "dr_grpo": ones / (count * longest),
    }[loss_type]


def longest_completion(settings: GrpoConfig, data: DataConfig) -> int:
    """The largest number of tokens of a completion."""
    return 1 if data.text_format.one_token else settings.max_completion_length or data.max_new_tokens
