"""Chooses the next tokens: greedily, or by sampling with temperature, top-k and top-p.

Each draw is one uniform number that is a pure function of the seed, the sample and the index of the token. The inverse
of the cumulative distribution maps it to a token. So the tokens of a request depend neither on the other requests in
the batch nor on when it arrived.

Shapes:
    R  rows
    V  vocabulary size
"""

import random
from collections.abc import Sequence

import torch
from torch import Tensor

from coconut_ds.generation.requests import Sampling


def uniform(sampling: Sampling, index: int) -> float:
    """The random number in [0, 1) for token ``index`` of a request."""
    return random.Random(f"token/{sampling.seed}/{sampling.sample}/{index}").random()


def choose(logits: Tensor, samplings: Sequence[Sampling], indices: Sequence[int]) -> list[int]:
    """The next token of each row.

    Args:
        logits: [R, V] in fp32; -inf where a token may not be chosen.
        samplings: [R] how to choose each row's token.
        indices: [R] the number of tokens that each row has so far.
    """
    tokens: list[int] = logits.argmax(dim=-1).tolist()
    # Filtered rows are sampled separately: filtering sorts the tokens, and the same uniform number then selects another
    # token. So whether a row is sorted must not depend on the other rows.
    for filtered in (False, True):
        rows = [i for i, each in enumerate(samplings) if each.temperature > 0 and _is_filtered(each) == filtered]
        if rows:
            draws = [uniform(samplings[row], indices[row]) for row in rows]
            picked = _draw(logits[rows], [samplings[row] for row in rows], draws, filtered)
            for row, token in zip(rows, picked, strict=True):
                tokens[row] = token
    return tokens


def _is_filtered(sampling: Sampling) -> bool:
    return sampling.top_k is not None or sampling.top_p < 1


def _draw(logits: Tensor, samplings: Sequence[Sampling], draws: Sequence[float], filtered: bool) -> list[int]:
    """Samples a token for each row from logits [R, V] and uniform numbers ``draws`` [R], in fp64."""

    def column(values: Sequence[float]) -> Tensor:
        return torch.tensor(values, dtype=torch.float64, device=logits.device).unsqueeze(1)

    probabilities = (logits.double() / column([s.temperature for s in samplings])).softmax(dim=-1)
    ids = None
    if filtered:
        vocabulary = logits.shape[1]
        limits = [min(s.top_k or vocabulary, vocabulary) for s in samplings]
        # Most probable first; only as many as the largest top_k of any row needs.
        probabilities, ids = probabilities.topk(max(limits), dim=-1)
        rank = torch.arange(max(limits), device=logits.device)
        probabilities = probabilities.masked_fill(rank >= column(limits), 0.0)
        total = probabilities.sum(dim=-1, keepdim=True)
        before = probabilities.cumsum(dim=-1) - probabilities
        probabilities = probabilities.masked_fill(before >= column([s.top_p for s in samplings]) * total, 0.0)
    cumulative = probabilities.cumsum(dim=-1)
    places = torch.searchsorted(cumulative, column(draws) * cumulative[:, -1:], right=True)
    # A draw close to 1 may round to the total; it then selects the last token of nonzero probability.
    last = (probabilities > 0).cumsum(dim=-1).argmax(dim=-1, keepdim=True)
    places = torch.minimum(places, last)
    picked: list[int] = (places if ids is None else ids.gather(1, places)).squeeze(1).tolist()
    return picked
