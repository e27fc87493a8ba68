"""A visit to the app: a page in a browser, and what a visitor does on it."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from serving import ROOT

if TYPE_CHECKING:
    from playwright import sync_api as playwright

PICTURES = ROOT / "outputs" / "app_pictures"
PATIENCE_MS = 60_000
"""Milliseconds; the cores may be shared with other tests."""
ANSWER = "#think-answer .answer, #think-after-table table"
"""The first and the last part of an answer that the page *Think* shows."""


@dataclass
class Visit:
    """An open page, and records of what it must not do."""

    page: "playwright.Page"
    url: str
    complaints: list[str] = field(default_factory=list)
    hosts: set[str] = field(default_factory=set)
    paths: set[str] = field(default_factory=set)
    """Paths of all requests to hosts."""

    def note(self, url: str) -> None:
        """Records a request."""
        parts = urlsplit(url)
        if parts.netloc:
            self.hosts.add(parts.netloc)
            self.paths.add(parts.path)

    def tab(self, name: str) -> None:
        """Opens a tab; on narrow screens some tabs are behind a button."""
        tab = self.page.get_by_role("tab", name=name, exact=True)
        if not tab.is_visible():
            self.page.locator(".overflow-menu > button").click()
            tab = self.page.locator(".overflow-dropdown").get_by_text(name, exact=True)
        tab.click()

    def wait(self, selector: str) -> "playwright.Locator":
        """Waits until the element is visible."""
        found = self.page.locator(selector).first
        found.wait_for(timeout=PATIENCE_MS)
        return found

    def ask(self, question: str) -> None:
        """Types a question and presses *Think*."""
        self.page.locator("#question textarea").fill(question)
        self.page.evaluate(f"document.querySelectorAll('{ANSWER}').forEach(one => one.dataset.before = '')")
        self.page.locator("#run-think").click()

    def wait_for_answer(self) -> None:
        """Waits until everything about the last question is shown. It must differ from the question before."""
        for part in ANSWER.split(", "):
            self.wait(f"{part}:not([data-before])")
        self.wait("#think-decoded .js-plotly-plot")

    def shoot(self, name: str) -> None:
        """Saves a screenshot."""
        PICTURES.mkdir(parents=True, exist_ok=True)
        self.page.screenshot(path=PICTURES / f"{name}.png", full_page=True)
