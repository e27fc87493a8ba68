"""Tokens that come one by one, as text that can be shown at once: no half characters, no markers, no stop strings.

What is shown never has to be taken back: a character whose bytes are not all there, and an end that may be the
beginning of a stop string, wait for the next tokens. All pieces together are the text of all tokens, cut at the first
stop string.
"""

from collections.abc import Callable, Sequence

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
MAX_BYTES = 4
"""Of a character in UTF-8."""
WINDOW = 256
"""Tokens that are decoded together; beyond that, what was settled long ago is left out."""


class TextStream:
    """The text of one continuation, piece by piece."""

    def __init__(self, decode: Callable[[Sequence[int]], str], stop: Sequence[str] = ()) -> None:
        """
        Args:
            decode: text of tokens, without markers and end of sequence.
            stop: texts that end the continuation, and are not shown.
        """
        self._decode, self._stop = decode, tuple(stop)
        self._tokens: list[int] = []
        self._settled = ""
        """Text of tokens that left the window."""
        self._shown = 0
        """Characters given out."""
        self._text = ""

    @property
    def num_shown(self) -> int:
        """Characters given out so far."""
        return self._shown

    def add(self, token: int) -> str:
        """What can be shown now that ``token`` is there; often nothing."""
        self._tokens.append(token)
        self._text = self._settled + self._decode(self._tokens)
        if len(self._tokens) >= WINDOW:
            self._shorten()
        place = first_place(self._text, self._stop)
        ready = len(self._text) - self._unsure() if place is None else place
        return self._show(ready)

    def end(self) -> str:
        """The rest, once no token will come."""
        place = first_place(self._text, self._stop)
        return self._show(len(self._text) if place is None else place)

    def _show(self, upto: int) -> str:
        piece = self._text[self._shown : upto]
        self._shown = max(self._shown, upto)
        return piece

    def _unsure(self) -> int:
        """Characters at the end that the next tokens may change, or turn into a stop string."""
        text = self._text
        broken = 0
        while broken < min(MAX_BYTES - 1, len(text)) and text[-1 - broken] == REPLACEMENT:
            broken += 1
        whole = text[: len(text) - broken]
        longest = max((len(stop) for stop in self._stop), default=1) - 1
        for length in range(min(longest, len(whole)), 0, -1):
            if any(stop.startswith(whole[-length:]) for stop in self._stop):
                return broken + length
        return broken

    def _shorten(self) -> None:
        """Leaves out the first half of the tokens, if what is left reads the same without it."""
        later = self._tokens[len(self._tokens) // 2 :]
        rest = self._decode(later)
        if rest and not rest.startswith(REPLACEMENT) and self._text.endswith(rest):
            self._settled = self._text[: len(self._text) - len(rest)]
            self._tokens = later


def first_place(text: str, stop: Sequence[str]) -> int | None:
    """Where the first of the stop strings begins; None where there is none."""
    places = [text.find(one) for one in stop if one in text]
    return min(places) if places else None
