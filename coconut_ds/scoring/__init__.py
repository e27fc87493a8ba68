"""When an answer is right: the conventions by which publications score, under the names of ``data.scoring``.

They differ where an answer is no plain integer, so the accuracy of one model differs between them. ``scores.json``
names the convention and its source. ``exact`` reads answers as this project writes them (``coconut_ds.formats``); the
others give the verdicts of the public code that they are named after.
"""

from coconut_ds.scoring.base import Scoring
from coconut_ds.scoring.choice import Choice
from coconut_ds.scoring.exact import Exact
from coconut_ds.scoring.mathematics import MathVerify
from coconut_ds.scoring.numeric import LastNumber, Number

EXACT = Exact()
"""The convention of the reference implementation, and the default."""
SCORINGS: dict[str, Scoring] = {one.name: one for one in (EXACT, Number(), LastNumber(), Choice(), MathVerify())}
"""The registry of conventions: each value of ``data.scoring``."""


def scoring_of(name: str, answers: str = "text") -> Scoring:
    """The convention with a name.

    Args:
        name: a key of ``SCORINGS``.
        answers: a value of ``formats.ANSWER_KINDS``; only ``exact`` reads it.

    Raises:
        ModelError: the convention needs a package that is not installed.
    """
    scoring = SCORINGS[name]
    scoring.prepare()
    return Exact(numbers=answers == "numbers") if name == EXACT.name else scoring
