"""A view as a link: what was asked on which page, without results, which the link makes again."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from urllib.parse import urlencode

from serve.app.studio import MAX_CHARACTERS

PAGES = ("think", "search", "intervene", "compare", "dataset", "export")


@dataclass(frozen=True)
class View:
    """The settings of all pages, as text; empty where a page's own default stands."""

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
    """``?view=…&…``, without what is empty."""
    return "?" + urlencode({name: text for name, text in asdict(view).items() if text})


def view_of(query: Mapping[str, str]) -> View:
    """The view that a link asks for; what makes no sense in it is left out."""
    found = {name: query[name] for name in NAMES if name in query and len(query[name]) <= MAX_CHARACTERS}
    if found.get("view", "think") not in PAGES:
        del found["view"]
    return View(**found)


def number_of(text: str, low: int, high: int) -> int | None:
    """A whole number within bounds; None where the text is none."""
    return int(text) if text.isascii() and text.isdigit() and low <= int(text[:9]) <= high else None
