"""What a scoring convention is."""

from abc import ABC, abstractmethod
from typing import ClassVar

from coconut_ds.formats import TEXT, Format


class Scoring(ABC):
    """One convention. Its objects have no state, so that they can be compared, and sent to other processes."""

    name: ClassVar[str]
    """Value of ``data.scoring``."""
    source: ClassVar[str]
    """The public code with this convention, for ``scores.json``."""

    @abstractmethod
    def read(self, text: str, answer: str | None = None, form: Format = TEXT) -> str:
        """What the convention reads in a generated text, as text; "" if it reads nothing.

        Args:
            text: the generated text.
            answer: the reference answer, if it is known.
            form: the format of the text.
        """

    @abstractmethod
    def gold(self, answer: str, form: Format = TEXT) -> str:
        """What it reads in a reference answer; "" if it reads nothing, so that no text can be scored."""

    @abstractmethod
    def is_correct(self, text: str, answer: str, form: Format = TEXT) -> bool:
        """Whether a generated text has the reference answer. No text has one that ``gold`` cannot read."""

    def alters(self, answer: str, form: Format = TEXT) -> bool:
        """Whether the user should know that the convention reads something else in a reference answer than it says."""
        return False

    def value(self, answer: str) -> str:
        """For majority votes: a text that is the same for answers, as ``read`` returns them, that count as equal."""
        return answer

    def prepare(self) -> None:  # noqa: B027 (most conventions need nothing)
        """Imports what the convention needs.

        Raises:
            ModelError: a package is missing; says how to install it.
        """
