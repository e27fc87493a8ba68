"""The bytes that tokens stand for, and their text: a token may be a part of a character.

A tokenizer's own ``decode`` replaces every incomplete character by U+FFFD. Many tokens of a byte-level tokenizer then
have the same text, and a text that was cut within a character ends in U+FFFD. In tokenizers with byte fallback (from
SentencePiece), an incomplete character even turns complete ones before it into U+FFFD.
"""

import json
import re
from collections.abc import Sequence
from functools import cache
from itertools import takewhile

from transformers import PreTrainedTokenizerBase
from transformers.convert_slow_tokenizer import bytes_to_unicode

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
MAX_BYTES = 4
"""Maximum length of a character in UTF-8."""
CONTEXT = 4
"""Number of tokens before a token that may decide its bytes, for example whether a space comes first."""
INCOMPLETE = re.compile(
    rb"([\xc2-\xdf]|\xe0[\xa0-\xbf]?|[\xe1-\xec\xee\xef][\x80-\xbf]?|\xed[\x80-\x9f]?"
    rb"|\xf0([\x90-\xbf][\x80-\xbf]?)?|[\xf1-\xf3]([\x80-\xbf]{1,2})?|\xf4([\x80-\x8f][\x80-\xbf]?)?)\Z"
)
"""The first bytes of a character at the end of a text in UTF-8 (table 3-7 of the Unicode Standard)."""
BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")
"""A token of one byte in vocabularies of SentencePiece."""


class Utf8Decoder:
    """Decodes bytes that come in pieces. Bytes that cannot become a character are replaced by U+FFFD.

    The incremental decoder of ``codecs`` also holds the first two bytes of a surrogate back, which are not valid.
    """

    def __init__(self) -> None:
        self.pending = b""
        """The bytes of an incomplete character at the end."""

    def decode(self, piece: bytes) -> str:
        """The text that a piece completes."""
        data = self.pending + piece
        incomplete = INCOMPLETE.search(data, max(0, len(data) - MAX_BYTES + 1))
        end = len(data) if incomplete is None else incomplete.start()
        self.pending = data[end:]
        return data[:end].decode(errors="replace")


def text_of(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    """The text of tokens, without a character at its end whose bytes are incomplete.

    The text of the first tokens is always a prefix of the text of all tokens.
    """
    text = _decode(tokenizer, ids)
    return Utf8Decoder().decode(b"".join(TokenBytes(tokenizer).of(ids))) if REPLACEMENT in text else text


class TokenBytes:
    """The bytes of a tokenizer's tokens. It may be of any kind: byte-level, with byte fallback, word-level."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self._is_byte_level = _is_byte_level(tokenizer)
        self._has_byte_tokens = not self._is_byte_level and _has_byte_tokens(tokenizer)

    def of(self, ids: Sequence[int], before: Sequence[int] = ()) -> list[bytes]:
        """The bytes that each token adds to the text of the tokens before it.

        All bytes joined are the text in UTF-8, except that they may end within a character, and that a model may have
        written bytes that are not valid.

        Args:
            ids: the tokens.
            before: the tokens of the same text before ``ids``; the last ``CONTEXT`` of them suffice.
        """
        if self._is_byte_level:
            # The bytes of such a token do not depend on others.
            return self.of_each(ids)
        everything = [*before[-CONTEXT:], *ids]
        places = range(len(everything) - len(ids), len(everything))
        return [self.of_each([everything[place]], everything[max(0, place - CONTEXT) : place])[0] for place in places]

    def of_each(self, ids: Sequence[int], before: Sequence[int] = ()) -> list[bytes]:
        """The bytes that each token would add to the text of the tokens before it, if it came next."""
        names = self._tokenizer.convert_ids_to_tokens(list(ids))
        if self._is_byte_level:
            return [_byte_level_bytes(name or "") for name in names]
        context = before[-CONTEXT:]
        text, found = _decode(self._tokenizer, context), []
        for token, name in zip(ids, names, strict=True):
            byte = BYTE_TOKEN.fullmatch(name or "") if self._has_byte_tokens else None
            # Tokenizers with byte fallback may leave out a space at the beginning of a text, also if it is a byte.
            if byte is not None and (context or byte[1] != "20"):
                found.append(bytes.fromhex(byte[1]))
            else:
                found.append(_rest(_decode(self._tokenizer, [*context, token]), text).encode())
        return found

    def token_of_name(self, name: str) -> int | None:
        """The token of a part of a character whose bytes ``token_name`` shows like this; None if there is none."""
        if r"\x" not in name:
            return None
        try:
            piece = bytes(name, "ascii").decode("unicode_escape").encode("latin-1")
        except UnicodeError:
            return None
        byte_level = "".join(bytes_to_unicode()[byte] for byte in piece)
        written = byte_level if self._is_byte_level else f"<0x{piece.hex().upper()}>"
        token = self._tokenizer.convert_tokens_to_ids(written)
        return token if isinstance(token, int) and self._tokenizer.convert_ids_to_tokens(token) == written else None


def is_text(piece: bytes) -> bool:
    """Whether bytes are whole characters."""
    try:
        piece.decode()
    except UnicodeDecodeError:
        return False
    return True


def token_name(piece: bytes) -> str:
    r"""The text of a token's bytes; if they are not whole characters, they are escaped as in ``\xf0\x9f``.

    No two parts of characters have the same name.
    """
    return piece.decode() if is_text(piece) else repr(piece)[2:-1]


def _decode(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    return str(tokenizer.decode(list(ids), clean_up_tokenization_spaces=False))


def _rest(longer: str, shorter: str) -> str:
    """What follows in a text after the characters that it has in common with another."""
    if longer.startswith(shorter):
        return longer[len(shorter) :]
    return longer[sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(shorter, longer, strict=False))) :]


def _is_byte_level(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether each character of a token in the vocabulary stands for one byte, as in GPT-2."""
    if not tokenizer.is_fast:
        return hasattr(tokenizer, "byte_decoder")
    decoder = tokenizer.backend_tokenizer.decoder
    if decoder is None:
        return False
    state = json.loads(decoder.__getstate__())
    kinds = {one["type"] for one in state.get("decoders", [state])}
    return "ByteLevel" in kinds and kinds <= {"ByteLevel", "Fuse"}


def _has_byte_tokens(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether tokens such as ``<0x0A>`` stand for bytes, as in vocabularies of SentencePiece."""
    newline = tokenizer.convert_tokens_to_ids("<0x0A>")
    return isinstance(newline, int) and tokenizer.decode([newline]) == "\n"


def _byte_level_bytes(name: str) -> bytes:
    """The bytes of a token of a byte-level vocabulary; added tokens may have other characters and are text."""
    table = _byte_of_character()
    return bytes(table[character] for character in name) if all(one in table for one in name) else name.encode()


@cache
def _byte_of_character() -> dict[str, int]:
    return {character: byte for byte, character in bytes_to_unicode().items()}
