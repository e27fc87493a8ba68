"""``choice``: one of several options is named by its letter, or a statement is true or false."""

import re
from typing import ClassVar

from coconut_ds.formats import TEXT, Format
from coconut_ds.scoring.base import Scoring
from coconut_ds.scoring.numeric import LastNumber

ANNOUNCED = "The answer is:"
"""Text that announces the answers of CODI's models."""
LETTERS = "ABCDE"
UNREADABLE = "C"
"""The option that counts as the answer where CODI's code can read none."""
TRUTH = {"True": 1.0, "False": 0.0}
"""The answers to yes-no questions, and the numbers that Python takes for equal to them."""
_DIGIT = re.compile(r"\d")


class Choice(Scoring):
    """The convention of CODI for CommonsenseQA (letters) and StrategyQA (``True`` and ``False``).

    The answer follows ``The answer is:`` or, in a text without these words, the last ``#``. What is before it is not
    read: CODI's models write nothing there, so its code does not distinguish. An option is the first character of the
    answer. An answer that begins otherwise counts as ``UNREADABLE``, and one with a digit in it, as a number that no
    option equals. A yes-no answer contains ``True``, or else ``False``; one with a digit in it is 1 or 0.
    """

    name: ClassVar[str] = "choice"
    source: ClassVar[str] = "zhenyi4/codi, test.py"

    def read(self, text: str, answer: str | None = None, form: Format = TEXT) -> str:
        """The option or the truth value in a text, depending on the reference answer; a number if there is a digit."""
        part = _answer_in(text)
        if _DIGIT.search(part):
            return LastNumber().read(part)
        truth = next((name for name in TRUTH if name in part), "")
        if answer is not None and answer.strip() in TRUTH:
            return truth
        return part[:1] if part[:1] in LETTERS else (truth if answer is None and truth else UNREADABLE)

    def gold(self, answer: str, form: Format = TEXT) -> str:
        """The reference answer; "" if it is neither a letter nor a truth value."""
        found = answer.strip()
        return found if found in TRUTH or found in tuple(LETTERS) else ""

    def is_correct(self, text: str, answer: str, form: Format = TEXT) -> bool:
        """Whether the text names the reference answer."""
        expected, found = self.gold(answer), self.read(text, answer)
        if expected in TRUTH and _DIGIT.search(found):
            return float(found) == TRUTH[expected]
        return bool(expected) and found == expected

    def value(self, answer: str) -> str:
        """The number that ``is_correct`` takes a truth value or a number for; a letter is itself."""
        return str(TRUTH[answer] if answer in TRUTH else float(answer)) if answer not in tuple(LETTERS) else answer


def _answer_in(text: str) -> str:
    _, announced, after = text.replace(",", "").rpartition(ANNOUNCED)
    return (after if announced else after.rpartition("#")[2]).strip()
