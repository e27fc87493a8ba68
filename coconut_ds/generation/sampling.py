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
from coconut_ds.generation.uploads import upload

NOT_FINITE = -1
"""Instead of a token, for a row whose logits hold a NaN or an infinity, or that may choose no token."""
LOWEST_TEMPERATURE = 1e-250
"""Lower temperatures are raised to this one, which gives the same distribution: logits in fp32 that differ are then
infinitely far apart, but their quotients do not overflow in fp64."""


def uniform(sampling: Sampling, index: int) -> float:
    """The random number in [0, 1) for token ``index`` of a request."""
    return random.Random(f"token/{sampling.seed}/{sampling.sample}/{index}").random()


def likeliest(logits: Tensor) -> Tensor:
    """``logits.argmax(dim=-1)``: [R] the first of the most probable tokens of each row."""
    # On a CPU, torch finds the largest value with its place in half the time that it takes to find the place alone.
    return logits.max(dim=-1).indices if logits.device.type == "cpu" else logits.argmax(dim=-1)


def only_finite(tokens: Tensor, logits: Tensor) -> Tensor:
    """The most probable ``tokens`` [R] of logits [R, V], with ``NOT_FINITE`` where the largest logit is not finite.

    torch takes a NaN for the largest of all numbers.
    """
    return torch.where(logits.gather(1, tokens.unsqueeze(1)).squeeze(1).isfinite(), tokens, NOT_FINITE)


def choose(logits: Tensor, samplings: Sequence[Sampling], indices: Sequence[int]) -> Tensor:
    """The next token of each row: [R] ids on the device of ``logits``, or ``NOT_FINITE``.

    The host does not wait for the device.

    Args:
        logits: [R, V] in fp32; -inf where a token may not be chosen.
        samplings: [R] how to choose each row's token.
        indices: [R] the number of tokens that each row has so far.
    """
    tokens, vocabulary = only_finite(likeliest(logits), logits), logits.shape[1]
    # Filtered rows are sampled separately: filtering sorts the tokens, and the same uniform number then selects another
    # token. So whether a row is sorted must not depend on the other rows.
    for filtered in (False, True):
        rows = [i for i, each in enumerate(samplings) if each.temperature > 0 and _is_filtered(each) == filtered]
        if rows:
            chosen = [samplings[row] for row in rows]
            limits = [min(one.top_k or vocabulary, vocabulary) for one in chosen]
            draws = [uniform(one, indices[row]) for row, one in zip(rows, chosen, strict=True)]
            temperatures, top_ps = [one.temperature for one in chosen], [one.top_p for one in chosen]
            # One copy to the device; fp64 holds row numbers and limits exactly.
            table = upload([rows, temperatures, draws, limits, top_ps], logits.device, torch.float64)
            places = table[0].long()
            picked = _draw(logits[places], table[1:].unsqueeze(-1), max(limits) if filtered else None)
            tokens.index_copy_(0, places, torch.where(tokens[places] == NOT_FINITE, NOT_FINITE, picked))
    return tokens


def _is_filtered(sampling: Sampling) -> bool:
    return sampling.top_k is not None or sampling.top_p < 1


def _draw(logits: Tensor, table: Tensor, limit: int | None) -> Tensor:
    """Samples a token [R] for each row from logits [R, V], in fp64.

    Args:
        logits: as in ``choose``.
        table: [4, R, 1] temperatures, uniform numbers, and for filtered rows their top_k and top_p.
        limit: the largest top_k of any row; None: rows are not filtered.
    """
    temperatures, draws, limits, top_ps = table
    probabilities = (logits.double() / temperatures.clamp(min=LOWEST_TEMPERATURE)).softmax(dim=-1)
    ids = None
    if limit is not None:
        # Most probable first; only as many as the largest top_k of any row needs.
        probabilities, ids = probabilities.topk(limit, dim=-1)
        rank = torch.arange(limit, device=logits.device)
        probabilities = probabilities.masked_fill(rank >= limits, 0.0)
        total = probabilities.sum(dim=-1, keepdim=True)
        before = probabilities.cumsum(dim=-1) - probabilities
        probabilities = probabilities.masked_fill(before >= top_ps * total, 0.0)
    cumulative = probabilities.cumsum(dim=-1)
    places = torch.searchsorted(cumulative, draws * cumulative[:, -1:], right=True)
    # A draw close to 1 may round to the total; it then selects the last token of nonzero probability.
    last = (probabilities > 0).cumsum(dim=-1).argmax(dim=-1, keepdim=True)
    places = torch.minimum(places, last)
    return (places if ids is None else ids.gather(1, places)).squeeze(1)
