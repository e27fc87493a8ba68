"""Measures the seconds from pressing *Think* to the first picture and to the last one, in a real browser.

    python benchmarks/app.py --runs outputs      # needs Chromium and Playwright; half a minute

Starts ``python -m serve app`` and opens a new page ``--repeats`` times. The first press comes right after the start.
A time ends when the browser has painted the picture. The last line is JSON.
"""

import argparse
import json
import shutil
import statistics
import sys
import time

from playwright.sync_api import Browser, sync_playwright
from server_process import started

PAINTED = "() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(() => done(true))))"
"""JavaScript that waits until the browser has painted."""


def main() -> None:
    """Runs the benchmark from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", default="outputs")
    parser.add_argument("--repeats", type=int, default=7)
    arguments = parser.parse_args()
    chromium = next((path for name in ("chromium", "google-chrome") if (path := shutil.which(name))), None)
    if chromium is None:
        sys.exit("no Chromium: apt-get install chromium")
    with started(["app", "--runs", arguments.runs]) as (address, start_s), sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        seconds = [seconds_to_pictures(browser, f"http://{address}/app/") for _ in range(arguments.repeats)]
        browser.close()
    result: dict[str, object] = {"start_s": round(start_s, 2)}
    for name, values in zip(("first_picture", "last_picture"), zip(*seconds, strict=True), strict=True):
        result[name] = {
            "first_press_s": round(values[0], 2),
            "later_presses_s": [round(value, 2) for value in values[1:]],
            "median_s": round(statistics.median(values), 2),
        }
    print(json.dumps(result))


def seconds_to_pictures(browser: Browser, url: str) -> tuple[float, float]:
    """Opens a new page, presses *Think*, and returns the seconds until the first and the last picture are painted."""
    page = browser.new_page()
    page.goto(url)
    page.wait_for_selector("html[data-ready]")
    began = time.perf_counter()
    page.locator("#run-think").click()
    seconds = []
    for name in ("decoded", "after"):
        page.locator(f"#think-{name} .js-plotly-plot").first.wait_for()
        page.evaluate(PAINTED)
        seconds.append(time.perf_counter() - began)
    page.close()
    return seconds[0], seconds[1]


if __name__ == "__main__":
    main()
