"""Log probabilities of tokens: each token with a name, its own bytes, and its place in the text.

A name identifies a token among those of its position. It is the token's text, which depends on the tokens before it
(whether a space comes first); bytes that are not whole characters are escaped (``\\xf0\\x9f``), and further tokens with
the same text are named by their ids.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from coconut_ds.data.token_bytes import Utf8Decoder, is_text, token_name
from coconut_ds.generation.prompter import Prompter
from coconut_ds.generation.requests import Score


class NamedToken(NamedTuple):
    """A token that was generated, or could have been. A tuple, since there may be 100,000 of them in an answer."""

    name: str
    """Unique among the tokens of its position."""
    bytes: bytes | None
    """What the token adds to the text; None for markers and the end of sequence, which are not part of it."""
    log_probability: float

    @property
    def is_part(self) -> bool:
        """Whether the token is not whole characters, so that its name is escaped."""
        return self.bytes is not None and not is_text(self.bytes)


@dataclass(frozen=True)
class ScoredToken:
    """A generated token."""

    token: NamedToken
    likeliest: tuple[NamedToken, ...]
    """The most likely tokens of its position, most likely first, without tokens that are excluded from sampling."""
    offset: int
    """Index in the text of the character in which the token begins."""


class ScoredText:
    """Names the tokens of one continuation, which must be added in the order in which they were generated."""

    def __init__(self, prompter: Prompter) -> None:
        self._prompter = prompter
        self._tokens: list[int] = []
        self._decoder = Utf8Decoder()
        self._num_characters = 0
        """Number of complete characters of the tokens added so far."""

    def add(self, token: int, score: Score) -> ScoredToken:
        """Adds a token."""
        named = self._named([(token, score.log_probability), *score.likeliest])
        offset = self._offset(named[0].bytes or b"")
        self._tokens.append(token)
        possible = tuple(one for one in named[1:] if one.log_probability > float("-inf"))
        return ScoredToken(named[0], possible, offset)

    def _named(self, candidates: Sequence[tuple[int, float]]) -> list[NamedToken]:
        """Tokens of one position, by id and log probability; a token may be among them twice."""
        ids = list(dict.fromkeys(token for token, _ in candidates))
        names: dict[str, int] = {}
        named: dict[int, tuple[str, bytes | None]] = {}
        for token, piece in zip(ids, self._prompter.bytes_of_each(ids, self._tokens), strict=True):
            name = str(self._prompter.tokenizer.decode([token])) if piece is None else token_name(piece)
            if names.setdefault(name, token) != token:
                name = f"token_id:{token}"
            named[token] = name, piece
        return [NamedToken(*named[token], value) for token, value in candidates]

    def _offset(self, piece: bytes) -> int:
        """Adds the bytes of a token; returns the index of the character in which they begin."""
        self._num_characters += len(self._decoder.decode(piece[:1]))
        # A first byte that completes a character, or replaces an invalid one, belongs to the last character so far.
        begins = self._num_characters - (bool(piece) and not self._decoder.pending)
        self._num_characters += len(self._decoder.decode(piece[1:]))
        return begins


def within(tokens: Iterable[ScoredToken], num_characters: int) -> list[ScoredToken]:
    """The tokens of a text that was cut to a number of characters: tokens of the rest are placed at its end."""
    return [replace(one, offset=min(one.offset, num_characters)) for one in tokens]
