"""What tests of the app do in a browser: change every control, and use the app under a prefix."""

import re
from collections.abc import Callable
from contextlib import AbstractContextManager

from making_app import GRAPH
from visiting import PATIENCE_MS, Visit

NUMBERS = {
    **{"thoughts": 4, "thought": 3, "draws": 5, "strength": 2.5, "other-thought": 4, "seed": 7},
    **{"layer": 1, "head": 2, "count": 20, "draws-per-problem": 3},
}
"""A new value for each number, by control."""
RADIOS = {
    "Intervene": ("scaled", "kept from the original run"),
    "States": ("Which state carries", "all (needs a donor", "kept from the original run"),
}
"""Labels of new choices, by tab."""
BOXES = {"answers after": False, "interventions": False, "linear probes": True, "values on graphs": True}
TEXTS = {"follow": "1,2", "token": "x", "donor": "0", "other-question": "1 + 1 ="}
BOX = """export { draw as default };
function draw(anchor) {
  const box = document.createElement('div');
  box.dataset.testid = 'plotly';
  box.textContent = 'a figure';
  anchor.before(box);
}"""
"""A script in place of that which draws figures with Plotly: it shows a box at once."""


def think_in_a_slow_browser(visit: Callable[..., AbstractContextManager[Visit]]) -> None:
    """Asks in a browser whose processor is ten times slower; every figure must arrive."""
    from playwright.sync_api import expect

    with visit(scripts={"**/PlotlyPlot-*.js": BOX}) as one:
        with one.slowed(10):
            one.page.locator("#run-think").click()
            one.page.locator("#think-after-table table").wait_for(timeout=3 * PATIENCE_MS)
        expect(one.page.locator("[data-testid=plotly]:visible")).to_have_count(6, timeout=PATIENCE_MS)


def change_everything(one: Visit) -> None:
    """Gives every control another value than that which it has when the app is opened."""
    from playwright.sync_api import expect

    one.choose("model", "pause_as_thought")
    question = one.page.locator("#question textarea")
    one.choose("file", "graphs")
    # The first problem of the file, which would take the place of another one that is chosen before it is there.
    expect(question).to_have_value(re.compile("Tom is"), timeout=PATIENCE_MS)
    one.set_number("number", 1)
    expect(question).to_have_value(GRAPH.question, timeout=PATIENCE_MS)
    question.fill(f"{GRAPH.question} ")
    one.set_number("thoughts", NUMBERS["thoughts"])
    for tab in ("Think", "Intervene", "States", "Compare", "Data set"):
        one.tab(tab)
        inside = one.page.locator("[role=tabpanel]:visible").first
        for name in RADIOS.get(tab, ()):
            inside.get_by_role("radio", name=name).check()
        for name, is_checked in BOXES.items() if tab == "Data set" else ():
            inside.get_by_role("checkbox", name=name).set_checked(is_checked)
        for name, number in NUMBERS.items():
            if inside.locator(f"#{name}").count():
                one.set_number(name, number)
        for name, text in TEXTS.items():
            if inside.locator(f"#{name}").count():
                inside.locator(f"#{name}").locator("textarea, input").first.fill(text)
        for name, text in (("pause", "pause_as_thought"), ("other-model", "coconut")):
            if inside.locator(f"#{name}").count():
                one.choose(name, text)


def use_under_a_prefix(
    visit: Callable[..., AbstractContextManager[Visit]], proxy: str, prefix: str, key: str | None
) -> None:
    """Opens a link, whose view is restored and computed, and makes a link; every request is under the prefix."""
    from playwright.sync_api import expect

    with visit("?view=think&thoughts=1&question=hello", at=f"{proxy}{prefix}/app", key=key) as one:
        one.wait("#think-decoded .js-plotly-plot")
        assert one.page.locator("#think-answer").inner_text().startswith("answer")
        one.shoot(f"prefix-{'key' if key else 'unknown'}")
        one.tab("Export")
        one.page.get_by_role("radio", name="Compare").check()
        one.page.locator("#run-export").click()
        one.wait("#export-files .empty:has-text('the link works')")
        link = one.page.locator("#export-link textarea, #export-link input").first
        expect(link).to_have_value(re.compile(re.escape(f"{proxy}{prefix}/app/?view=compare&")))
        links = one.page.evaluate(
            "[...document.querySelectorAll('link[rel=icon], link[rel=manifest]')].map(l => l.href)"
        )
        assert links == [f"{proxy}{prefix}/app/{name}" for name in ("manifest.json", "favicon.ico")]
        assert [path for path in one.paths if not path.startswith(f"{prefix}/app")] == []
