"""Choosing tokens: greedy, or drawn from a tempered and filtered distribution.

A draw is one uniform number, a pure function of (seed, sample, index of the token), put through the distribution's
inverse cumulative function. So what a request gets depends neither on its neighbours nor on when it came.

Legend: ``m`` rows, ``V`` vocabulary.
"""

import random
from collections.abc import Sequence

import torch
from torch import Tensor

from coconut_ds.generation.requests import Sampling


def uniform(sampling: Sampling, index: int) -> float:
    """The draw in [0, 1) for token ``index`` of a request."""
    return random.Random(f"token/{sampling.seed}/{sampling.sample}/{index}").random()


def choose(logits: Tensor, samplings: Sequence[Sampling], indices: Sequence[int]) -> list[int]:
    """The next token of each row.

    Args:
        logits: [m, V] in fp32; -inf where a token may not be chosen.
        samplings: how, for each row.
        indices: how many tokens each row has.
    """
    tokens: list[int] = logits.argmax(dim=-1).tolist()
    # Apart, since a filter sorts tokens, and a draw means another one in another order.
    for filtered in (False, True):
        rows = [row for row, one in enumerate(samplings) if one.temperature > 0 and _is_filtered(one) == filtered]
        if rows:
            draws = [uniform(samplings[row], indices[row]) for row in rows]
            picked = _draw(logits[rows], [samplings[row] for row in rows], draws, filtered)
            for row, token in zip(rows, picked, strict=True):
                tokens[row] = token
    return tokens


def _is_filtered(sampling: Sampling) -> bool:
    return sampling.top_k is not None or sampling.top_p < 1


def _draw(logits: Tensor, samplings: Sequence[Sampling], draws: Sequence[float], filtered: bool) -> list[int]:
    def column(values: Sequence[float]) -> Tensor:
        return torch.tensor(values, dtype=torch.float64, device=logits.device).unsqueeze(1)

    probabilities = (logits.double() / column([s.temperature for s in samplings])).softmax(dim=-1)
    ids = None
    if filtered:
        vocabulary = logits.shape[1]
        limits = [min(s.top_k or vocabulary, vocabulary) for s in samplings]
        # Likeliest first; no more of them than somebody may choose.
        probabilities, ids = probabilities.topk(max(limits), dim=-1)
        rank = torch.arange(max(limits), device=logits.device)
        probabilities = probabilities.masked_fill(rank >= column(limits), 0.0)
        total = probabilities.sum(dim=-1, keepdim=True)
        before = probabilities.cumsum(dim=-1) - probabilities
        probabilities = probabilities.masked_fill(before >= column([s.top_p for s in samplings]) * total, 0.0)
    cumulative = probabilities.cumsum(dim=-1)
    places = torch.searchsorted(cumulative, column(draws) * cumulative[:, -1:], right=True)
    # A draw next to 1 may be rounded up to the sum: the last token with a probability then.
    last = (probabilities > 0).cumsum(dim=-1).argmax(dim=-1, keepdim=True)
    places = torch.minimum(places, last)
    picked: list[int] = (places if ids is None else ids.gather(1, places)).squeeze(1).tolist()
    return picked
