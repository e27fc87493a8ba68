"""Bans tokens, chooses the next token of each row and scores it: all rows together, with one read from the device.

Shapes:
    R  rows
    V  vocabulary size
    W  largest number of tokens that a row bans
    K  largest number of most probable tokens that a row wants
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from coconut_ds.generation.requests import Score
from coconut_ds.generation.rows import Row
from coconut_ds.generation.sampling import NOT_FINITE, choose
from coconut_ds.generation.uploads import padded, upload

NO_TOKEN = -1
"""Fills a row's list of banned tokens up."""


class Choice(NamedTuple):
    """What was chosen for a row."""

    token: int
    """The next token. If the row may stop thinking: the most probable one. ``NOT_FINITE`` if there is none."""
    score: Score | None
    """Its score; None unless the row wants it."""


def ban(logits: Tensor, banned: Tensor) -> None:
    """Sets logits [R, V] to -inf, in place, at the tokens ``banned`` [R, W], which ``NO_TOKEN`` fills up."""
    infinity = float("inf")
    # In the same operation for any number of tokens; the minimum with inf leaves a logit as it is.
    limits = torch.where(banned == NO_TOKEN, infinity, -infinity).to(logits.dtype)
    logits.scatter_reduce_(1, banned.clamp(min=0), limits, "amin")


def ban_for(logits: Tensor, rows: Sequence[Row]) -> None:
    """Bans in logits [R, V], in place, what each row bans now."""
    banned = [row.banned for row in rows]
    width = max(map(len, banned))
    if width:
        ban(logits, upload(padded(banned, width, NO_TOKEN), logits.device))


def choices(logits: Tensor, rows: Sequence[Row]) -> list[Choice]:
    """The next token of each row, and its score where the row wants it.

    Args:
        logits: [R, V] in fp32, with bans.
        rows: [R] the rows that need a token now.
    """
    tokens = choose(logits, [row.sampling for row in rows], [len(row.tokens) for row in rows])
    scored = [index for index, row in enumerate(rows) if row.is_scored]
    if not scored:
        return [Choice(token, None) for token in tokens.tolist()]
    given = [row.next_given for row in rows]
    if any(token is not None for token in given):
        wanted = upload([NO_TOKEN if token is None else token for token in given], logits.device)
        tokens = torch.where((wanted == NO_TOKEN) | (tokens == NOT_FINITE), tokens, wanted)
    made = _scored_choices(logits, tokens, rows, scored)
    pairs = zip(made, given, strict=True)
    return [one if token is None or one.token == NOT_FINITE else one._replace(token=token) for one, token in pairs]


def _scored_choices(logits: Tensor, tokens: Tensor, rows: Sequence[Row], scored: list[int]) -> list[Choice]:
    """Like ``choices``, with scores for the rows ``scored``; ``tokens`` [R] are the chosen ones."""
    count = min(max(1, *(rows[index].request.num_likeliest for index in scored)), logits.shape[1])
    picked = tokens.clamp(min=0).unsqueeze(1)
    if len(scored) < len(rows):
        places = upload(scored, logits.device)
        logits, picked = logits[places], picked[places]
    scores = logits.log_softmax(dim=-1)
    values, ids = scores.topk(count, dim=-1)
    # fp64 holds ids and fp32 numbers exactly, so one copy to the host brings everything.
    parts = [scores.gather(1, picked), scores.argmax(dim=-1, keepdim=True), ids, values]
    table = torch.cat([part.double() for part in parts], dim=1)
    read = torch.cat([tokens.double(), table.flatten()]).tolist()
    chosen, width = [int(token) for token in read[: len(rows)]], table.shape[1]
    found: dict[int, Score] = {}
    for place, index in enumerate(scored):
        start = len(rows) + place * width
        log_probability, greedy, *likeliest = read[start : start + width]
        wanted = min(rows[index].request.num_likeliest, count)
        pairs = zip(map(int, likeliest[:wanted]), likeliest[count:][:wanted], strict=True)
        found[index] = Score(log_probability, chosen[index] == int(greedy), tuple(pairs))
    return [Choice(token, found.get(index)) for index, token in enumerate(chosen)]
