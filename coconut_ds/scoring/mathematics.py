"""``math_verify``: two mathematical expressions are equal according to the package ``math-verify``."""

import re
import threading
from typing import Any, ClassVar

from coconut_ds.formats import TEXT, Format
from coconut_ds.packages import needs
from coconut_ds.scoring.base import Scoring

DELIMITER = re.compile(r"(?<!\\)\$|\\\(|\\\[|\\boxed|\\begin\{(?:equation|align|math)")
"""What shows the package where mathematics is in a text; ``\\$`` is a dollar."""
LIMIT_S = 5
"""Seconds that parsing or a comparison may take, the package's own default. What takes longer counts as wrong."""


class MathVerify(Scoring):
    """``verify(parse(reference answer), parse(answer))`` with the package's defaults.

    The answer is what follows the last ``#``, as in the text format; in a text without ``#`` it is all of it. The
    package finds LaTeX only between delimiters, so reference answers, and answers after ``#``, that have none are put
    between ``$``.
    """

    name: ClassVar[str] = "math_verify"
    source: ClassVar[str] = "huggingface/Math-Verify, parse and verify with their defaults"

    def read(self, text: str, answer: str | None = None, form: Format = TEXT) -> str:
        """The text that the package parses."""
        _, mark, after = text.rpartition("#")
        return _delimited(after.strip()) if mark else after.strip()

    def gold(self, answer: str, form: Format = TEXT) -> str:
        """The reference answer as the package parses it; "" if it is empty."""
        return _delimited(answer.strip()) if answer.strip() else ""

    def is_correct(self, text: str, answer: str, form: Format = TEXT) -> bool:
        """Whether the two expressions are equal."""
        # The package counts seconds with signals, which only the main thread of a process can receive.
        limit = LIMIT_S if threading.current_thread() is threading.main_thread() else None
        library = _library()
        expected, found = (library.parse(one, parsing_timeout=limit) for one in (self.gold(answer), self.read(text)))
        return bool(library.verify(expected, found, timeout_seconds=limit))

    def prepare(self) -> None:
        """Imports ``math-verify``."""
        _library()


def _library() -> Any:
    # Imported here: it takes a second, and is needed for this convention alone.
    with needs("math"):
        import math_verify
    return math_verify


def _delimited(text: str) -> str:
    return text if DELIMITER.search(text) else f"${text}$"
