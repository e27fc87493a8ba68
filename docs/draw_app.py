"""Takes the picture of the app for the README: what follows when a thought is replaced by another problem's.

Usage: ``python docs/draw_app.py``. Needs Chromium and Playwright. Asks the released checkpoint, and replaces app.png.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "benchmarks")]
from server_process import started  # noqa: E402
from visiting import chromium, visiting  # noqa: E402

from coconut_ds.files import released_checkpoints  # noqa: E402

WIDTH = 900
"""Pixels; wide enough for the page's layout of two columns."""
THOUGHT = 8
OVERVIEW_MS = 300_000
"""Milliseconds; the last figure of the page takes a second on an idle machine."""


def main() -> None:
    """Starts the app, uses it, and writes the picture."""
    with (
        started(["app", "--runs", str(released_checkpoints())]) as (address, _),
        chromium() as browser,
        visiting(browser, f"http://{address}/app/", width=WIDTH) as one,
    ):
        one.tab("Intervene")
        one.set_number("thought", THOUGHT)
        one.page.locator("#run-intervene").click()
        one.wait("#intervene-picture .js-plotly-plot")
        one.page.locator("#intervene-every .js-plotly-plot").wait_for(timeout=OVERVIEW_MS)
        # Places on the screen are then places on the page.
        one.page.evaluate("window.scrollTo(0, 0)")
        top, last = (one.page.locator(name).first.bounding_box() for name in ("[role=tablist]", "#intervene-picture"))
        assert top is not None
        assert last is not None
        area = {
            "x": 0.0,
            "y": top["y"] - 8,
            "width": float(WIDTH),
            "height": last["y"] + last["height"] + 16 - top["y"],
        }
        one.page.screenshot(path=ROOT / "docs" / "app.png", full_page=True, clip=area)


if __name__ == "__main__":
    main()
