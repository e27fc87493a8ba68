"""SIM-CoT (arXiv 2509.20317), slow and obvious: what its auxiliary decoder must write, one row and one group at a time.

The decoder reads the vectors of a group of thoughts, then the tokens of the step that the group stands for, and must
predict these tokens. ``on_coconut`` and ``on_codi`` give the vectors of the two variants; ``*_weights`` their means.
"""

from collections.abc import Sequence

import torch
from slow_thoughts import IGNORE, Feed, Row, embedded, losses_of, states_of, think, unchanged
from torch import Tensor
from transformers import PreTrainedModel

Targets = Sequence[Sequence[Sequence[int]]]
"""For each row, for each group of thoughts, the tokens that the decoder must write; empty where there are none."""


def slow_steps(
    model: PreTrainedModel,
    decoder: PreTrainedModel,
    vectors: Sequence[Sequence[Tensor]],
    targets: Targets,
    weights: Sequence[Sequence[float]],
    first_position: int = 0,
    into_decoder: Feed = unchanged,
) -> Tensor:
    """The loss of the steps: the sum over rows, groups and tokens of weight × cross entropy.

    Args:
        model: the main model, whose token embeddings the decoder reads.
        decoder: the auxiliary decoder.
        vectors: for each row, for each group, its vectors [c, D].
        targets: see ``Targets``.
        weights: for each row, for each group, the weight of each of its tokens.
        first_position: the position id of a group's first vector: 0 on CODI, 1 on Coconut.
        into_decoder: what all input vectors go through first, if the decoder has another width.
    """
    total = torch.zeros(())
    for row_vectors, row_targets, row_weights in zip(vectors, targets, weights, strict=True):
        for thoughts, tokens, weight in zip(row_vectors, row_targets, row_weights, strict=True):
            if tokens:
                embeds = into_decoder(torch.cat([thoughts, embedded(model, tokens)]))
                states = states_of(decoder, embeds, first_position)
                losses = losses_of(decoder, states, [IGNORE] * len(thoughts) + list(tokens))
                total = total + weight * losses.sum()
    return total


def on_codi(model: PreTrainedModel, rows: Sequence[Row], feed: Feed) -> list[list[Tensor]]:
    """The vectors on CODI: each fed thought is a group, and so is the next one, which is never fed: n + 1 groups."""
    return [[thought[None] for thought in think(model, row, feed)[1]] for row in rows]


def on_coconut(model: PreTrainedModel, rows: Sequence[Row], per_step: int) -> list[list[Tensor]]:
    """The vectors on Coconut: groups of ``per_step`` consecutive fed thoughts."""
    return [list(think(model, row)[1][: row.num_thoughts].split(per_step)) for row in rows]


def codi_weights(targets: Targets) -> list[list[float]]:
    """For each group the mean over its tokens in all rows; then the mean over the groups that have any token."""
    counts = [sum(map(len, group)) for group in zip(*targets, strict=True)]
    filled = sum(count > 0 for count in counts)
    return [[1 / (count * filled) if count else 0.0 for count in counts]] * len(targets)


def coconut_weights(targets: Targets, token_level: bool = False) -> list[list[float]]:
    """For each group the sum over tokens, averaged over rows; then the mean over all groups.

    Args:
        targets: see ``Targets``.
        token_level: whether each group's sum is divided by the number of its tokens, instead of by that of rows.
    """
    counts = [sum(map(len, group)) for group in zip(*targets, strict=True)]
    divisors = counts if token_level else [len(targets)] * len(counts)
    return [[1 / (divisor * len(counts)) for divisor in divisors]] * len(targets)


def bracketed(ids: Sequence[int], starts: Sequence[int], end: int) -> list[list[int]]:
    """The steps in a text: each run of tokens from one of ``starts`` (``<<``) to the next ``end`` (``>>``)."""
    steps: list[list[int]] = []
    inside = False
    for token in ids:
        if not inside and token in starts:
            steps.append([])
            inside = True
        if inside:
            steps[-1].append(token)
        inside = inside and token != end
    return steps


def codi_groups(steps: Sequence[Sequence[int]], num_groups: int, eos_id: int) -> list[list[int]]:
    """A row's targets on CODI: one step for each group, the last takes all that are left; one end of sequence each.

    Args:
        steps: tokens of the steps that the teacher reads, without the text between them.
        num_groups: the number of thoughts + 1.
        eos_id: the token that ends each target.
    """
    rest = [token for step in steps[num_groups - 1 :] for token in step]
    taken = [*map(list, steps[: num_groups - 1]), rest]
    return [[*tokens, eos_id] if tokens else [] for tokens in taken] + [[]] * (num_groups - len(taken))


def coconut_groups(
    steps: Sequence[Sequence[int]],
    answer: Sequence[int],
    num_groups: int,
    max_stage: int,
    newline: Sequence[int],
    eos_id: int,
) -> list[list[int]]:
    """A row's targets on Coconut: group k writes step k; group ``max_stage`` also writes all later steps.

    Args:
        steps: tokens of all steps, without the newlines after them.
        answer: tokens of the answer without the end of sequence: the target of groups for which there is no step.
        num_groups: the number of groups of thoughts.
        max_stage: the stage at which all steps are replaced.
        newline: tokens between steps that are written one after the other.
        eos_id: the token that ends each target.
    """
    groups = []
    for group in range(num_groups):
        last = group + 1 == max_stage
        taken = [list(step) for step in (steps[group:] if last else steps[group : group + 1])]
        joined = [token for step in taken for token in [*newline, *step]][len(newline) :]
        groups.append([*(joined or answer), eos_id])
    return groups
