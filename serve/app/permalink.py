"""Links to views. A link contains the page, the question and the settings; opening it computes the results again."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from urllib.parse import urlencode

from serve.app.studio import MAX_CHARACTERS

MAX_DIGITS = 18
"""Longest number that is read. No setting is that large, and Python refuses to read numbers of thousands of digits."""
PAGES = ("think", "search", "intervene", "states", "compare", "dataset", "export")


@dataclass(frozen=True)
class View:
    """The selected page and the settings of all pages, as text; an empty setting means the page's default."""

    view: str = "think"
    model: str = ""
    file: str = ""
    number: str = ""
    question: str = ""
    thoughts: str = ""
    follow: str = ""
    after: str = ""
    kind: str = ""
    thought: str = ""
    draws: str = ""
    later: str = ""
    strength: str = ""
    other_thought: str = ""
    token: str = ""
    seed: str = ""
    pause: str = ""
    what: str = ""
    layer: str = ""
    head: str = ""
    donor: str = ""
    positions: str = ""
    later_states: str = ""
    other_model: str = ""
    other_question: str = ""
    parts: str = ""
    """Parts of a measurement, separated by commas."""
    count: str = ""
    draws_per_problem: str = ""


NAMES = tuple(field.name for field in fields(View))


def query_of(view: View) -> str:
    """The link's query, ``?view=…&…``, without empty settings."""
    return "?" + urlencode({name: text for name, text in asdict(view).items() if text})


def view_of(query: Mapping[str, str]) -> View:
    """The view of a link's query; unknown, too long or invalid settings are ignored."""
    found = {name: query[name] for name in NAMES if name in query and len(query[name]) <= MAX_CHARACTERS}
    if found.get("view", "think") not in PAGES:
        del found["view"]
    return View(**found)


def number_of(text: str, low: int, high: int) -> int | None:
    """The number that a text represents; None if the text is not a whole number within bounds."""
    if not (text.isascii() and text.isdigit()) or len(text) > MAX_DIGITS:
        return None
    value = int(text)
    return value if low <= value <= high else None


def decimal_of(text: str, low: float, high: float) -> float | None:
    """The decimal number that a text represents; None if the text is not a number within bounds."""
    try:
        value = float(text)
    except ValueError:
        return None
    return value if low <= value <= high else None


def text_of(setting: object) -> str:
    """The text of a setting in a link."""
    if isinstance(setting, list):
        return ",".join(map(str, setting))
    return "" if setting is None else f"{setting:g}" if isinstance(setting, float) else str(setting)
