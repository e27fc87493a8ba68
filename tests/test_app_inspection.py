"""What the browser tests check on every page of the app finds the faults that it is meant to find.

Needs Chromium; the check with axe-core also needs ``npm ci --prefix tests/axe``, which ``make test`` runs.
"""

import pytest
from visiting import AXE, AXE_RULES, CHROMIUM, INSPECTION, chromium

pytestmark = pytest.mark.slow
if CHROMIUM is None:
    pytest.skip("no Chromium: apt-get install chromium", allow_module_level=True)
pytest.importorskip("playwright.sync_api", reason="no Playwright: pip install playwright")

GOOD = """<html lang="en"><title>A page</title><main><h1>A page</h1>
<div style="overflow: hidden; width: 90px; white-space: nowrap">a text</div>
<div class="graph"><svg width="200" height="60"><text x="10" y="20">one</text><text x="90" y="20">two</text>
<polyline points="0,50 190,50"/></svg></div>
<div class="js-plotly-plot" style="width: 200px"><svg width="200" height="60" overflow="visible"><g class="g-xtitle">
<text x="150" y="20">axis</text></g></svg></div></main></html>"""
FAULTS = {
    "cut: a text": ("width: 90px", "width: 20px"),
    "labels overlap: one | two": ('x="90"', 'x="12"'),
    "an edge crosses one": ("0,50 190,50", "0,18 190,18"),
    "cut by its plot: axis": ('x="150"', 'x="190"'),
    "the page is 2000 wide": ("<h1>", '<h1 style="width: 2000px; margin-left: -8px">'),
    "contrast 1.61: one": ('<text x="10"', '<text fill="#ccc" x="10"'),
}
"""A change of the page by the fault that it makes."""
AXE_FAULTS = {
    "color-contrast": ("<h1>", '<h1 style="color: #aaa">'),
    "html-has-lang": (' lang="en"', ""),
    "image-alt": ("</main>", '<img src="data:,"></main>'),
}


@pytest.fixture(scope="module")
def page():
    with chromium() as browser:
        page = browser.new_page(viewport={"width": 400, "height": 300})
        yield page


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_of_layout_are_found(page, fault):
    page.set_content(GOOD)
    assert page.evaluate(INSPECTION) == []
    page.set_content(GOOD.replace(*FAULTS[fault]))
    assert fault in page.evaluate(INSPECTION)


@pytest.mark.parametrize("fault", AXE_FAULTS)
def test_faults_of_accessibility_are_found(page, fault):
    if not AXE.is_file():
        pytest.skip("axe-core is not installed, so the app's accessibility is not checked: npm ci --prefix tests/axe")
    page.set_content(GOOD)
    page.evaluate(AXE.read_text(encoding="utf-8"))
    assert page.evaluate(AXE_RULES) == []
    page.set_content(GOOD.replace(*AXE_FAULTS[fault]))
    page.evaluate(AXE.read_text(encoding="utf-8"))
    assert [one.split(":")[0] for one in page.evaluate(AXE_RULES)] == [fault]
    of_colours = [one.split(":")[0] for one in page.evaluate(AXE_RULES, {"coloursOnly": True, "plots": False})]
    assert of_colours == [fault] * (fault == "color-contrast")
