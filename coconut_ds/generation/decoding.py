"""Shows thoughts as tokens: by the language model head, or by the nearest input embeddings.

The head's distribution is a projection of a thought, not its meaning: a state may hold information that the head does
not show.

Shapes:
    B  sequences
    L  thoughts in each sequence
    n  states
    D  hidden size
    V  vocabulary size
"""

import difflib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from coconut_ds.data.encoding import encode
from coconut_ds.data.token_bytes import REPLACEMENT, TokenBytes, token_name
from coconut_ds.errors import DataError
from coconut_ds.model.latent_loop import LatentLoop
from coconut_ds.model.support import embedding_weight


@dataclass(frozen=True)
class ChosenToken:
    """The rank and probability of a token that the caller chose."""

    token: str
    """The token as text."""
    rank: int
    """1 for the most probable token; equally probable tokens share the best of their ranks."""
    log_probability: float
    """Natural logarithm."""


@dataclass(frozen=True)
class DecodedThought:
    """The distribution over tokens that the head computes from one thought."""

    tokens: list[str]
    """The most probable tokens as text, most probable first."""
    probabilities: list[float]
    """The probability of each of them."""
    entropy: float
    """Entropy of the whole distribution, in nats."""
    chosen: tuple[ChosenToken, ...] = ()
    """The tokens that the caller chose, in the caller's order."""


@dataclass(frozen=True)
class NearToken:
    """A token whose input embedding is close in direction to a state."""

    token: str
    """The token as text."""
    cosine: float
    """Cosine between the token's input embedding and the state."""


@torch.no_grad()
def decode_thoughts(
    loop: LatentLoop,
    tokenizer: PreTrainedTokenizerBase,
    thoughts: Tensor,
    top_k: int = 5,
    chosen: Sequence[int] = (),
    temperature: float = 1.0,
) -> list[list[DecodedThought]]:
    """The most probable tokens of ``softmax(head(thought) / temperature)`` (arXiv 2412.06769, figure 4).

    Args:
        loop: the model.
        tokenizer: the model's tokenizer.
        thoughts: [B, L, D] states after the final norm.
        top_k: number of tokens to return for each thought; at most V are returned.
        chosen: ids of tokens whose rank and probability to return as well.
        temperature: divides the logits; values above 1 flatten the distribution.

    Returns:
        For each of the B sequences, its L decoded thoughts.
    """
    if not thoughts.numel():
        return [[] for _ in range(len(thoughts))]
    logits = loop.head(thoughts.to(loop.device, loop.model.dtype)) / temperature
    scores = logits.log_softmax(dim=-1)
    values, ids = scores.topk(min(top_k, scores.shape[-1]), dim=-1)
    entropies = torch.special.entr(scores.exp()).sum(dim=-1)
    wanted = scores[..., list(chosen)]
    ranks = (scores.unsqueeze(-2) > wanted.unsqueeze(-1)).sum(dim=-1) + 1
    names = token_names(tokenizer, {*ids.flatten().tolist(), *chosen})

    def decoded(row: int, place: int) -> DecodedThought:
        choices = zip(chosen, ranks[row, place].tolist(), wanted[row, place].tolist(), strict=True)
        return DecodedThought(
            [names[token] for token in ids[row, place].tolist()],
            values[row, place].exp().tolist(),
            float(entropies[row, place]),
            tuple(ChosenToken(names[token], rank, score) for token, rank, score in choices),
        )

    return [[decoded(row, place) for place in range(thoughts.shape[1])] for row in range(len(thoughts))]


@torch.no_grad()
def nearest_tokens(
    loop: LatentLoop, tokenizer: PreTrainedTokenizerBase, states: Tensor, count: int = 3
) -> list[list[NearToken]]:
    """For each of the states [n, D], the ``count`` tokens whose input embeddings have the largest cosine with it."""
    table = torch.nn.functional.normalize(embedding_weight(loop.model.get_input_embeddings()).float(), dim=-1)
    directions = torch.nn.functional.normalize(states.to(table), dim=-1)
    values, ids = (directions @ table.T).topk(min(count, len(table)), dim=-1)
    names = token_names(tokenizer, set(ids.flatten().tolist()))
    return [
        [NearToken(names[token], cosine) for token, cosine in zip(row_ids, row, strict=True)]
        for row_ids, row in zip(ids.tolist(), values.tolist(), strict=True)
    ]


def token_names(tokenizer: PreTrainedTokenizerBase, ids: set[int]) -> dict[int, str]:
    r"""The text of each token, spaces included; a part of a character is shown as its bytes, such as ``\xf0\x9f``."""
    names = {token: str(tokenizer.decode([token])) for token in ids}
    parts = [token for token, name in names.items() if REPLACEMENT in name]
    pieces = TokenBytes(tokenizer).of(parts) if parts else []
    return names | {token: token_name(piece) for token, piece in zip(parts, pieces, strict=True)}


def token_id(tokenizer: PreTrainedTokenizerBase, text: str) -> int:
    """The id of the single token that ``text`` is, as given or with a space before it, or named by ``token_names``.

    Raises:
        DataError: ``text`` is several tokens, or the tokenizer does not know it.
    """
    if (special := tokenizer.added_tokens_encoder.get(text)) is not None:
        return int(special)
    unknown = tokenizer.unk_token_id
    for written in (text, f" {text}"):
        ids = encode(tokenizer, [written])[0]
        if len(ids) == 1 and ids[0] != unknown:
            return int(ids[0])
    part = TokenBytes(tokenizer).token_of_name(text)
    if part is not None:
        return part
    ids = encode(tokenizer, [text])[0]
    if unknown is not None and unknown in ids:
        near = difflib.get_close_matches(text, tokenizer.get_vocab(), n=3)
        hint = f"; did you mean {' or '.join(near)}?" if near else ""
        raise DataError(f"tokens: {text!r} is unknown to the tokenizer{hint}")
    names = token_names(tokenizer, set(ids))
    # ``repr`` would double the backslashes of escaped bytes.
    pieces = ", ".join(f"'{names[token]}'" if names[token].isprintable() else repr(names[token]) for token in ids)
    raise DataError(
        f"tokens: {text!r} is {len(ids)} tokens ({pieces or 'none'}), expected a single token; give one of them"
    )
