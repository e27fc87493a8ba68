"""``number`` and ``last_number``: answers are compared as numbers, in double precision."""

import math
import re
from typing import ClassVar

from coconut_ds.formats import TEXT, Format
from coconut_ds.scoring.base import Scoring

TOLERANCE = 1e-6
"""Largest difference between equal numbers under ``number``."""
SIGNIFICANT = 10
"""Number of significant digits of a reference answer that count as its decimals."""
_WRITTEN = re.compile(r"-?\d+(?:\.\d*)?")
"""A number within a text: digits, with a minus directly before them and decimals after a point."""
MARK = "####"
"""Text before the answer in GSM8K's own solutions."""


class Number(Scoring):
    """The text after the last ``#`` is a number of the value of the reference answer.

    Commas are left out, and nothing but the number may be there: ``$5`` and ``5 apples`` are not read. Numbers are
    equal if they differ by less than ``TOLERANCE``. If the reference answer has decimals, the number may also round to
    it, as GSM-Plus has rounded answers. LatentTTS reads texts in the same way, but has neither exception.
    """

    name: ClassVar[str] = "number"
    source: ClassVar[str] = (
        "jihwan1205/Singular-Value-Perturbation, svp/metrics.py and svp/models/coconut.py; ModalityDance/LatentTTS, "
        "src/paths.py, without the tolerance"
    )

    def read(self, text: str, answer: str | None = None, form: Format = TEXT) -> str:
        """The text after the last ``#``, without commas; "" if it is no number."""
        found = text.rpartition("#")[2].strip().replace(",", "")
        return "" if _value(found) is None else found

    def gold(self, answer: str, form: Format = TEXT) -> str:
        """The reference answer without commas; "" if it is no finite number."""
        return _finite(answer.replace(",", ""))

    def is_correct(self, text: str, answer: str, form: Format = TEXT) -> bool:
        """Whether the two numbers are equal, as described above."""
        found, expected = _value(self.read(text)), _value(self.gold(answer))
        if found is None or expected is None:
            return False
        decimals = _num_decimals(expected)
        rounded = round(found, decimals) if decimals else found
        return any(abs(one - expected) < TOLERANCE for one in (found, rounded))

    def value(self, answer: str) -> str:
        """The value of the number."""
        return _shown(answer)


class LastNumber(Scoring):
    """The last number in the text, wherever it is, has the value of the reference answer.

    Commas are left out first. Whatever surrounds the digits does not matter: in ``$5.`` the number is 5, in ``1/2`` it
    is 2, and in ``9-4`` it is -4. The reference answer may be a solution of GSM8K; its answer then follows ``####``.
    """

    name: ClassVar[str] = "last_number"
    source: ClassVar[str] = "zhenyi4/codi, test.py"

    def read(self, text: str, answer: str | None = None, form: Format = TEXT) -> str:
        """The last number in a text; "" if there is none."""
        return next(reversed(_WRITTEN.findall(text.replace(",", ""))), "")

    def gold(self, answer: str, form: Format = TEXT) -> str:
        """The reference answer without commas; "" if it is no finite number."""
        return _finite(answer.rpartition(MARK)[2].replace(",", ""))

    def is_correct(self, text: str, answer: str, form: Format = TEXT) -> bool:
        """Whether the two numbers are exactly equal."""
        expected = _value(self.gold(answer))
        return expected is not None and _value(self.read(text)) == expected

    def value(self, answer: str) -> str:
        """The value of the number."""
        return _shown(answer)


def _shown(answer: str) -> str:
    """A text that is the same for all ways to write a number."""
    value = _value(answer)
    # Adding 0 turns -0.0 into 0.0.
    return answer if value is None else str(value + 0)


def _value(text: str) -> float | None:
    """The number that a text is, by the rules of Python; None if it is no number."""
    try:
        return float(text)
    except ValueError:
        return None


def _finite(text: str) -> str:
    value = _value(text)
    return "" if value is None or not math.isfinite(value) else text.strip()


def _num_decimals(value: float) -> int:
    """Number of digits after the point of a number; 0 for one that is written with an exponent."""
    written = f"{value:.{SIGNIFICANT}g}"
    return 0 if "e" in written else len(written.partition(".")[2])
