"""What the slow twins of the training objectives share: plain data, one row at a time, no padding and no cache.

Every forward pass encodes one whole sequence, so that nothing here depends on masks, caches or batches. Everything is
differentiable. Shapes: T positions of a sequence, D hidden size, V vocabulary size, L layers.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel

IGNORE = -100
"""Label of positions without loss."""
Feed = Callable[[Tensor], Tensor]
"""What a vector goes through before a model reads it as an input embedding: [..., D] → [..., D]."""


class Row(NamedTuple):
    """One sequence. A ``coconut_ds.methods.layout.Layout`` has the same attributes and can be used in its place."""

    input_ids: Sequence[int]
    """T token ids; those at the positions of thoughts are not read, except by LOTUS."""
    labels: Sequence[int]
    """T labels: a position's own token, or ``IGNORE``. The state before a position predicts its label."""
    first_thought: int
    """Position of the first thought; T if there are none."""
    num_thoughts: int
    """Number of thoughts, at consecutive positions."""


def unchanged(vectors: Tensor) -> Tensor:
    """The feed of Coconut: a state is fed back as it is."""
    return vectors


def embedded(model: PreTrainedModel, ids: Sequence[int]) -> Tensor:
    """Input embeddings [T, D] of token ids."""
    return model.get_input_embeddings()(torch.tensor(list(ids), dtype=torch.long))


def layers_of(model: PreTrainedModel, embeds: Tensor, first_position: int = 0) -> list[Tensor]:
    """Encodes one sequence and returns L + 1 tensors [T, D]: the embedding output, each layer, the last after its norm.

    Args:
        model: the language model.
        embeds: [T, D] input embeddings, without position embeddings.
        first_position: the position id of the first vector.
    """
    positions = torch.arange(first_position, first_position + len(embeds))[None]
    output = model.base_model(
        inputs_embeds=embeds[None], position_ids=positions, use_cache=False, output_hidden_states=True
    )
    return [states[0] for states in (*output.hidden_states[:-1], output.last_hidden_state)]


def states_of(model: PreTrainedModel, embeds: Tensor, first_position: int = 0) -> Tensor:
    """Hidden states [T, D] after the final norm; see ``layers_of``."""
    return layers_of(model, embeds, first_position)[-1]


def think(model: PreTrainedModel, row: Row, feed: Feed = unchanged) -> tuple[Tensor, Tensor]:
    """Fills in the thoughts of a row one after the other.

    Returns:
        The input embeddings [T, D], and the thoughts [n + 1, D]: those that are fed, and what the state at the last
        thought's position would feed next. The latter is [0, D] for a row without thoughts.
    """
    embeds = embedded(model, row.input_ids)
    thoughts = []
    for place in range(row.first_thought, row.first_thought + row.num_thoughts):
        thoughts.append(feed(states_of(model, embeds[:place])[-1]))
        embeds = torch.cat([embeds[:place], thoughts[-1][None], embeds[place + 1 :]])
    if not thoughts:
        return embeds, embeds[:0]
    next_thought = feed(states_of(model, embeds[: row.first_thought + row.num_thoughts])[-1])
    return embeds, torch.stack([*thoughts, next_thought])


def logits_of(model: PreTrainedModel, states: Tensor) -> Tensor:
    """Logits [..., V] of states [..., D]."""
    return model.get_output_embeddings()(states)


def losses_of(model: PreTrainedModel, states: Tensor, labels: Sequence[int]) -> Tensor:
    """Cross entropies [N] of the N labels of a sequence, each predicted by the state [D] before it."""
    places = [place for place, label in enumerate(labels) if label != IGNORE]
    targets = torch.tensor([labels[place] for place in places], dtype=torch.long)
    before = torch.tensor([place - 1 for place in places], dtype=torch.long)
    return F.cross_entropy(logits_of(model, states[before]), targets, reduction="none")


def reduced(losses: Sequence[Tensor], weights: Sequence[float] | None) -> Tensor:
    """The sum over rows of weight × the sum of the row's losses; without weights, the mean over all losses.

    Args:
        losses: for each row, the losses [N] of its targets.
        weights: for each row, the weight of each of its targets.
    """
    if weights is None:
        weights = [1 / sum(map(len, losses))] * len(losses)
    return torch.stack([weight * row.sum() for weight, row in zip(weights, losses, strict=True)]).sum()


def slow_likelihood(
    model: PreTrainedModel, rows: Sequence[Row], feed: Feed = unchanged, weights: Sequence[float] | None = None
) -> Tensor:
    """The cross entropy of all labels after the thoughts of each row have been filled in; see ``reduced``."""
    return reduced(
        [losses_of(model, states_of(model, think(model, row, feed)[0]), row.labels) for row in rows], weights
    )


@torch.no_grad()
def greedy(
    model: PreTrainedModel, embeds: Tensor, max_new_tokens: int, eos_id: int, banned: Sequence[int] = ()
) -> list[int]:
    """Greedy continuation of a sequence, encoded again for each token. It ends after ``eos_id``, which is included.

    Args:
        model: the language model.
        embeds: [T, D] input embeddings of the prompt, thoughts included.
        max_new_tokens: the largest number of tokens.
        eos_id: the token that ends the answer.
        banned: tokens that are never written.
    """
    tokens: list[int] = []
    while len(tokens) < max_new_tokens and eos_id not in tokens:
        logits = logits_of(model, states_of(model, embeds)[-1])
        logits[list(banned)] = float("-inf")
        tokens.append(int(logits.argmax()))
        embeds = torch.cat([embeds, embedded(model, tokens[-1:])])
    return tokens
