"""Streams the text of tokens that arrive one by one, without partial characters, markers or stop strings.

Text that has been sent never changes: a suffix that may be the beginning of a stop string is held back until the next
tokens decide, and an incomplete character at the end is not part of the text of tokens. All pieces joined are the text
of all tokens, cut at the stop string that is complete first.
"""

from collections.abc import Callable, Sequence

from coconut_ds.data.token_bytes import REPLACEMENT

WINDOW = 256
"""Maximum number of tokens that are decoded together. Earlier tokens, whose text is final, are not decoded again."""


class TextStream:
    """Turns the tokens of one continuation into pieces of text."""

    def __init__(self, decode: Callable[[Sequence[int]], str], stop: Sequence[str] = ()) -> None:
        """
        Args:
            decode: returns the text of tokens, without markers, end of sequence and an incomplete character at the end.
            stop: strings at which the text is cut; they are not part of it.
        """
        self._decode, self._stop = decode, tuple(stop)
        self._tokens: list[int] = []
        self._settled = ""
        """Text of the tokens that are no longer in the window."""
        self._num_sent = 0
        """Number of characters returned so far."""
        self._text = ""

    def add(self, token: int) -> str:
        """Adds a token; returns the text that is now final and was not returned before, which is often empty."""
        self._tokens.append(token)
        self._text = self._settled + self._decode(self._tokens)
        if len(self._tokens) >= WINDOW:
            self._shorten()
        place = first_place(self._text, self._stop)
        return self._send(len(self._text) - self._num_undecided() if place is None else place)

    def end(self) -> str:
        """Returns the remaining text; call it after the last token."""
        place = first_place(self._text, self._stop)
        return self._send(len(self._text) if place is None else place)

    def _send(self, end: int) -> str:
        """The text from the first character that was not returned yet up to ``end``."""
        piece = self._text[self._num_sent : end]
        self._num_sent = max(self._num_sent, end)
        return piece

    def _num_undecided(self) -> int:
        """Number of characters at the end that the next tokens may complete to a stop string."""
        longest = max((len(stop) for stop in self._stop), default=1) - 1
        for length in range(min(longest, len(self._text)), 0, -1):
            if any(stop.startswith(self._text[-length:]) for stop in self._stop):
                return length
        return 0

    def _shorten(self) -> None:
        """Drops the first half of the tokens, if the second half decodes to the same text without it."""
        later = self._tokens[len(self._tokens) // 2 :]
        rest = self._decode(later)
        if rest and not rest.startswith(REPLACEMENT) and self._text.endswith(rest):
            self._settled = self._text[: len(self._text) - len(rest)]
            self._tokens = later


def first_place(text: str, stop: Sequence[str]) -> int | None:
    """Where the stop string begins that is complete first, the longest if several are; None if there is none.

    What follows it does not matter, so the result is the same however the text is divided into tokens.
    """
    found = [(place + len(one), place) for one in stop if (place := text.find(one)) >= 0]
    return min(found)[1] if found else None
