"""Links to views. A link contains the page, the question and the settings; opening it computes the results again."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from urllib.parse import urlencode

from serve.app.studio import MAX_CHARACTERS

PAGES = ("think", "search", "intervene", "compare", "dataset", "export")


@dataclass(frozen=True)
class View:
    """The selected page and the settings of all pages, as text; an empty setting means the page's default."""

    view: str = "think"
    model: str = ""
    file: str = ""
    question: str = ""
    thoughts: str = ""
    follow: str = ""
    kind: str = ""
    thought: str = ""
    other_model: str = ""
    other_question: str = ""


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
    return int(text) if text.isascii() and text.isdigit() and low <= int(text[:9]) <= high else None
