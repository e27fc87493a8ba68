"""Encodes questions as in training: as the format writes them, and with names of special tokens as ordinary text."""

from collections.abc import Sequence
from typing import Any

from tokenizers import Tokenizer

from coconut_vllm.errors import NotSupported


def written(question: str, format: str) -> str:
    """A question as a format of the cards writes it: ``text`` ends it with a newline, ``codi`` joins double spaces."""
    return question.strip().replace("  ", " ") if format == "codi" else f"{question}\n"


class Questions:
    """Encodes questions with a copy of the engine's tokenizer. Any number of threads may use it."""

    def __init__(self, tokenizer: Any, format: str) -> None:
        """``format``: that of the checkpoint's card.

        Raises:
            NotSupported: the tokenizer is not one of the ``tokenizers`` library.
        """
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if backend is None:
            raise NotSupported(
                f"the tokenizer {type(tokenizer).__name__} has no tokenizer.json, so questions cannot be encoded as in "
                "training; save it with a fast tokenizer, and leave out --tokenizer-mode"
            )
        self._format = format
        self._named, self._plain = (Tokenizer.from_str(backend.to_str()) for _ in range(2))
        for each in (self._named, self._plain):
            each.no_truncation()
            each.no_padding()
        # Whether the name of a special token in a text becomes that token.
        self._named.encode_special_tokens, self._plain.encode_special_tokens = False, True
        self._before, self._after = self._around()

    def _around(self) -> tuple[list[int], list[int]]:
        """The tokens that the tokenizer adds before and after every text."""
        for text in ("a", "1", "the"):
            plain, whole = self._encode(self._plain, text), self._plain.encode(text, add_special_tokens=True).ids
            for start in range(len(whole)):
                if plain and whole[start : start + len(plain)] == plain:
                    return whole[:start], whole[start + len(plain) :]
        return [], []

    @staticmethod
    def _encode(tokenizer: Tokenizer, text: str) -> list[int]:
        ids: list[int] = tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    def encode(self, question: str) -> list[int]:
        """The token ids of a question. What the tokenizer adds after a text is left out, since thoughts follow."""
        return [*self._before, *self._encode(self._plain, written(question, self._format))]

    def is_whole(self, text: str, ids: Sequence[int]) -> bool:
        """Whether ``ids`` are those that vLLM makes of all of ``text``, with or without what the tokenizer adds."""
        encoded = self._encode(self._named, text)
        return list(ids) in (encoded, [*self._before, *encoded, *self._after])
