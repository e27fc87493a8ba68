"""``exact``: the answer after the last ``#`` is the same text as the reference answer, without commas."""

from dataclasses import dataclass
from typing import ClassVar

from coconut_ds.formats import TEXT, Format, extract_answer, is_correct, number_in
from coconut_ds.scoring.base import Scoring


@dataclass(frozen=True)
class Exact(Scoring):
    """The convention of the reference implementation of Coconut. ``formats.Format.extract`` has the exceptions."""

    name: ClassVar[str] = "exact"
    source: ClassVar[str] = "facebookresearch/coconut, run.py"
    numbers: bool = False
    """Whether answers that are numbers of the same value are equal too (``data.answers=numbers``)."""

    @property
    def answers(self) -> str:
        """The value of ``data.answers``."""
        return "numbers" if self.numbers else "text"

    def read(self, text: str, answer: str | None = None, form: Format = TEXT) -> str:
        """The text after the last ``#``, without commas and surrounding spaces."""
        return extract_answer(text, form, answer)

    def gold(self, answer: str, form: Format = TEXT) -> str:
        """The reference answer, read like a text."""
        return form.gold(answer)

    def is_correct(self, text: str, answer: str, form: Format = TEXT) -> bool:
        """See ``formats.is_correct``."""
        return is_correct(text, answer, form, self.answers)

    def value(self, answer: str) -> str:
        """The answer itself, or the value of a number with ``numbers``."""
        found = number_in(answer) if self.numbers else None
        # Hexadecimal, since Python refuses to write more than 4,300 decimal digits.
        return answer if found is None else "/".join(f"{part:x}" for part in found.as_integer_ratio())

    def alters(self, answer: str, form: Format = TEXT) -> bool:
        """See ``Format.alters``."""
        return form.alters(answer)
