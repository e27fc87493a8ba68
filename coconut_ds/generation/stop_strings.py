"""Finds stop strings at the end of a text that is being generated."""

from collections.abc import Callable, Sequence

from coconut_ds.data.token_bytes import MAX_BYTES, REPLACEMENT


def ends_with_stop(tokens: Sequence[int], stop: Sequence[str], decode: Callable[[Sequence[int]], str]) -> bool:
    """Whether the text of ``tokens`` contains one of the strings ``stop``, which it did not before its last token."""
    # Only the end of the text can hold a new stop string, so decode only that. A token has at least one byte, so as
    # many tokens as the string has bytes suffice; 8 more, since a decoder may treat the first tokens differently.
    tail = tokens[-(max(len(text.encode()) for text in stop) + 8) :]
    text = decode(tail)
    if len(tail) < len(tokens):
        # The tail may begin within a character, whose remaining bytes are then not valid by themselves.
        text = text[: MAX_BYTES - 1].lstrip(REPLACEMENT) + text[MAX_BYTES - 1 :]
    return any(each in text for each in stop)
