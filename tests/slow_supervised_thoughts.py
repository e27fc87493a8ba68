"""Supervised thoughts, slow and obvious: loss and measures, one row and one thought at a time, differentiable."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from slow_thoughts import Row, logits_of, losses_of, states_of, think
from torch import Tensor
from transformers import PreTrainedModel

Shares = Mapping[int, float]
"""Token ids, each with its probability."""


class Asked(NamedTuple):
    """What one state must predict."""

    position: int
    """Of the thought or pause token that follows the state."""
    hop: int
    target: Shares
    frontier: Shares


def slow_supervised_thoughts(
    model: PreTrainedModel, rows: Sequence[Row], asked: Sequence[Sequence[Asked]], weight: float
) -> tuple[Tensor, dict[int, list[tuple[float, float, float]]]]:
    """The two parts of the loss [2], and for each hop what is measured at each of its states.

    Args:
        model: the language model.
        rows: the sequences.
        asked: for each row, what its states must predict.
        weight: of the second part.
    """
    written, predicted, measured = [], [], defaultdict(list)
    for row, own in zip(rows, asked, strict=True):
        embeds, _ = think(model, row)
        written += list(losses_of(model, states_of(model, embeds), row.labels))
        for one in own:
            state = states_of(model, embeds[: one.position])[-1]
            log_probabilities = logits_of(model, state).log_softmax(-1)
            predicted.append(sum(-share * log_probabilities[token] for token, share in one.target.items()))
            if one.frontier:
                loss = sum(-share * log_probabilities[token].item() for token, share in one.frontier.items())
                inside = float(int(log_probabilities.argmax()) in one.frontier)
                mass = sum(log_probabilities[token].exp().item() for token in one.frontier)
                measured[one.hop].append((loss, inside, mass))
    thoughts = weight * torch.stack(predicted).mean() if predicted else torch.zeros(())
    return torch.stack([torch.stack(written).mean(), thoughts]), measured
