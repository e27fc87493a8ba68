"""A visit to the app: a page in a browser, and what a visitor does on it."""

import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from serving import ROOT

if TYPE_CHECKING:
    from playwright import sync_api as playwright

CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)
"""The browser that is installed; None if there is none."""
PICTURES = ROOT / "outputs" / "app_pictures"
PATIENCE_MS = 60_000
"""Milliseconds; the cores may be shared with other tests."""
INSPECTION = (ROOT / "tests" / "inspecting_page.js").read_text(encoding="utf-8")
AXE = ROOT / "tests" / "axe" / "node_modules" / "axe-core" / "axe.min.js"
"""axe-core, which checks accessibility: ``npm ci --prefix tests/axe``."""
AXE_RULES = """(asked) => {
  const {coloursOnly = false, plots = true} = asked ?? {};
  return axe.run(
    plots ? document : {exclude: [[".js-plotly-plot"]]},
    {resultTypes: ["violations"], ...(coloursOnly ? {runOnly: ["color-contrast", "link-in-text-block"]} : {})},
  ).then(({violations}) =>
    violations.flatMap(({id, nodes}) => nodes.map(({html}) => `${id}: ${html.slice(0, 120)}`)));
}"""
"""JavaScript that returns one line for each fault of accessibility that axe-core finds: its rule and the element. Its
argument can restrict it to the rules about colours, and to what is not part of a plot."""
CONTROLS = """() => Object.fromEntries([...document.querySelectorAll('.block[id] :is(input, textarea)')]
  .filter(one => !one.closest('#export-page, #export-link'))
  .map(one => ['radio', 'checkbox'].includes(one.type)
    ? [`${one.closest('.block').id}: ${one.closest('label').innerText.trim()}`, one.checked]
    : [`${one.closest('.block').id} (${one.type})`, one.value.replace(/, (under )?\\d+ \\w+ old/, '')]))"""
"""JavaScript that returns the state of every control of the page by its name, without the ages of checkpoints."""
TABS = ("Think", "Search", "Intervene", "States", "Compare", "Data set", "Export")
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
    defaults: dict[str, str | bool] = field(default_factory=dict)
    """The state of every control when the page was opened."""

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
        self.mark_answer()
        self.page.locator("#run-think").click()

    def mark_answer(self) -> None:
        """Marks what is shown of the last answer, so that the next answer is told apart."""
        self.page.evaluate(f"document.querySelectorAll('{ANSWER}').forEach(one => one.dataset.before = '')")

    def wait_for_equal_answer(self) -> None:
        """Waits until another answer to the same question is complete, and nothing is dimmed any more."""
        self.wait("#think-answer .answer:not([data-before])")
        self.page.wait_for_function("!document.querySelector('.of-think .busy')", timeout=PATIENCE_MS)

    @contextmanager
    def slowed(self, rate: float) -> Iterator[None]:
        """Makes the browser's processor slower by this factor."""
        tools = self.page.context.new_cdp_session(self.page)
        tools.send("Emulation.setCPUThrottlingRate", {"rate": rate})
        yield
        tools.send("Emulation.setCPUThrottlingRate", {"rate": 1})
        tools.detach()

    def wait_for_answer(self) -> None:
        """Waits until everything about the last question is shown. It must differ from the question before."""
        for part in ANSWER.split(", "):
            self.wait(f"{part}:not([data-before])")
        self.wait("#think-decoded .js-plotly-plot")

    def inspect(self, name: str, dark: bool = True, plots: bool = True) -> None:
        """Fails if a text is cut or has too little contrast, labels overlap, the page is too wide or not accessible.

        axe-core takes up to seconds for a page with plots, so it checks only what can differ from earlier checks. Dark
        mode changes nothing but colours, and axe-core does not look at the colours of texts in plots.

        Args:
            name: of the page, for the message.
            dark: whether to look at the page in dark mode, too.
            plots: whether axe-core looks into plots in light mode. The width of the screen changes nothing there.
        """
        # Gradio fades results that are being computed again.
        self.page.locator(".pending:visible").first.wait_for(state="hidden", timeout=PATIENCE_MS)
        has_axe = AXE.is_file()
        if has_axe and not self.page.evaluate("'axe' in window"):
            self.page.evaluate(AXE.read_text(encoding="utf-8"))
        for is_dark in (False, True) if dark else (False,):
            self.page.evaluate("(isDark) => document.body.classList.toggle('dark', isDark)", is_dark)
            asked = {"coloursOnly": is_dark, "plots": plots and not is_dark}
            faults = [*self.page.evaluate(INSPECTION), *(self.page.evaluate(AXE_RULES, asked) if has_axe else ())]
            assert not faults, (name, self.page.evaluate("document.body.className"), faults)
        self.page.evaluate("document.body.classList.remove('dark')")

    def controls(self) -> dict[str, str | bool]:
        """The state of every control of all tabs, which are created when they are first opened."""
        for name in TABS:
            self.tab(name)
        self.tab("Intervene")
        options = self.page.get_by_role("button", name="More options")
        if not self.page.locator("#token textarea, #token input").first.is_visible():
            options.click()
        self.wait("#token textarea, #token input")
        found: dict[str, str | bool] = self.page.evaluate(CONTROLS)
        return found

    def set_number(self, name: str, value: float) -> None:
        """Types a number into a slider or a number field."""
        field = self.page.locator(f"#{name} input[type=number]")
        field.fill(f"{value:g}")
        field.press("Enter")

    def choose(self, name: str, text: str) -> None:
        """Selects the entry of a list whose text begins so."""
        self.page.locator(f"#{name} input").click()
        self.page.get_by_role("option").filter(has_text=text).first.click()

    def choose_file(self, name: str, first: str) -> None:
        """Selects a file of problems, and waits until its first question is shown."""
        from playwright.sync_api import expect

        self.choose("file", name)
        expect(self.page.locator("#question textarea")).to_have_value(first, timeout=PATIENCE_MS)

    def shoot(self, name: str) -> None:
        """Saves a screenshot."""
        PICTURES.mkdir(parents=True, exist_ok=True)
        self.page.screenshot(path=PICTURES / f"{name}.png", full_page=True)


@contextmanager
def chromium() -> Iterator["playwright.Browser"]:
    """Starts the browser."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as started:
        made = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield made
        made.close()


def _answering(script: str) -> "Callable[[playwright.Route], None]":
    """Answers requests with a script."""
    return lambda one: one.fulfill(body=script, content_type="text/javascript")


@contextmanager
def visiting(
    browser: "playwright.Browser",
    address: str,
    query: str = "",
    width: int = 1280,
    key: str | None = None,
    scripts: Mapping[str, str] = MappingProxyType({}),
) -> Iterator[Visit]:
    """Opens the app in a fresh browser; at the end the page must have logged no error and contacted no other host.

    ``key``: the password that the visitor types. ``scripts``: what the browser gets instead of scripts of the app, by
    pattern of their addresses.
    """
    context = browser.new_context(
        viewport={"width": width, "height": 900},
        color_scheme="light",
        reduced_motion="reduce",
        http_credentials={"username": "me", "password": key} if key else None,
    )
    page = context.new_page()
    # Playwright's own limit, 30 s, is exceeded on a busy machine.
    page.set_default_timeout(PATIENCE_MS)
    made = Visit(page, address)
    page.on("console", lambda one: made.complaints.append(one.text) if one.type == "error" else None)
    page.on("pageerror", lambda error: made.complaints.append(str(error)))
    page.on("request", lambda one: made.note(one.url))
    for pattern, text in scripts.items():
        page.route(pattern, _answering(text))
    page.goto(address + query)
    page.wait_for_selector("html[data-ready]", timeout=PATIENCE_MS)
    yield made
    assert (made.complaints, made.hosts) == ([], {address.split("/")[2]})
    context.close()
