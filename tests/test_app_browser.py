"""The app in a real browser, over a real server process: every page, strange questions, links, phones, a password.

Needs Chromium (``apt-get install chromium``); skipped without it. Pictures of all pages go to ``outputs/app_pictures``.
"""

import json
import re
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import httpx
import pytest
from making_app import LONG, REFUSALS, STRANGE, SUMS, write_problems
from proxying import LateEnds, proxying
from serving import ROOT, ServerProcess, save_checkpoint, serving
from using_app import change_everything, think_in_a_slow_browser, use_under_a_prefix
from visiting import CHROMIUM, PATIENCE_MS, PICTURES, TABS, Visit, chromium, visiting

pytestmark = pytest.mark.slow
if CHROMIUM is None:
    pytest.skip("no Chromium: apt-get install chromium", allow_module_level=True)
playwright = pytest.importorskip("playwright.sync_api", reason="no Playwright: pip install playwright")


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> Iterator[ServerProcess]:
    folder = tmp_path_factory.mktemp("app")
    data = [part for path in write_problems(folder) for part in ("--data", str(path))]
    given = [f"{name}={save_checkpoint(folder / name, name)}" for name in ("coconut", "pause_as_thought")]
    with serving(*given, options=("--app", "--max-positions", "256", "--allowed-host", "example.org", *data)) as made:
        yield made
    print(f"pictures: {PICTURES}")


@pytest.fixture(scope="module")
def browser() -> Iterator["playwright.Browser"]:
    with chromium() as made:
        yield made


@pytest.fixture(scope="module")
def visit(browser, server) -> Callable[..., AbstractContextManager[Visit]]:
    """Opens the app, see ``visiting``; ``at``: its address, if it is not that of the server."""

    def open_it(query: str = "", at: str = "", **more: Any) -> AbstractContextManager[Visit]:
        return visiting(browser, at or f"{server.url}/app/", query, **more)

    return open_it


@pytest.fixture(scope="module")
def open_page(visit) -> Iterator[Visit]:
    with visit() as made:
        made.defaults = made.controls()
        made.tab("Think")
        yield made


@pytest.fixture
def desk(open_page) -> Iterator[Visit]:
    """A page on a wide screen that several tests use, one after the other: to open one takes seconds."""
    open_page.complaints.clear()
    yield open_page
    open_page.page.set_viewport_size({"width": 1280, "height": 900})
    assert open_page.complaints == []


@pytest.mark.parametrize("path", ["", "docs"])
def test_the_pages_of_the_api_need_no_script_and_no_other_host(browser, server, path):
    context = browser.new_context(java_script_enabled=False)
    page, urls, complaints = context.new_page(), [], []
    page.on("console", lambda one: complaints.append(one.text))
    page.on("request", lambda one: urls.append(one.url))
    page.goto(f"{server.url}/{path}")
    assert page.locator("h2").count() >= 2
    assert page.get_by_role("link", name="openapi.json").is_visible()
    page.screenshot(path=PICTURES.parent / f"page-{path or 'index'}.png", full_page=True)
    assert ([url for url in urls if not url.startswith("data:")], complaints) == ([f"{server.url}/{path}"], [])
    context.close()


def test_every_page_works(desk):
    """Every page of one question once; Intervene needs three clicks."""
    one = desk
    one.shoot("start")
    one.page.locator("#run-think").click()
    one.wait("#think-after .js-plotly-plot")
    one.wait("#think-after-table table")
    assert one.page.locator("#think-decoded .heatmaplayer").count() == 1
    one.shoot("think")
    one.inspect("think")

    # A result is hidden while the question is another one.
    one.page.locator("#question textarea").fill(SUMS[1].question)
    one.page.locator("#think-decoded").wait_for(state="hidden")
    assert "has changed" in one.wait(".instead-think").inner_text()
    one.page.locator("#question textarea").fill(SUMS[0].question)
    one.wait("#think-decoded")
    one.set_number("number", 99)
    one.wait("#bar-message .notice:has-text('problem number: is 99; expected a whole number from 0 to 11')")
    one.set_number("number", 0)

    one.tab("Search")
    one.page.locator("#run-search").click()
    one.wait("#search-message .notice:has-text('needs a problem with its graph')")
    assert one.page.locator("#search-graph .busy").count() == 0

    one.tab("Intervene")
    one.page.get_by_role("radio", name="zero").check()
    one.page.locator("#run-intervene").click()
    one.wait("#intervene-every .js-plotly-plot")
    rows = one.page.locator("#intervene-table tbody tr th").all_inner_texts()
    assert rows[:2] == ["original run", "thought 1: intervention"]
    assert {"control: thought 2", "control: token before the thoughts"} <= set(rows)
    one.inspect("intervene")
    one.shoot("intervene")

    one.tab("States")
    one.page.locator("#run-states").click()
    one.wait("#states-first .js-plotly-plot")
    one.shoot("states-attention")
    one.page.get_by_role("radio", name="Which state carries").check()
    one.page.locator("#run-states").click()
    one.wait("#states-second .js-plotly-plot")
    assert "has the largest effect" in one.page.locator("#states-state .finding").inner_text()
    one.inspect("states")
    one.shoot("states")


def test_every_other_page_works(desk):
    """Compare, Data set and Export."""
    one = desk
    one.tab("Compare")
    one.page.locator("#run-compare").click()
    one.wait("#compare-second-decoded .js-plotly-plot")
    assert "(pause_as_thought" in one.page.locator("#compare-second").inner_text()
    one.inspect("compare")
    one.shoot("compare")

    one.tab("Data set")
    assert not one.page.locator("#cancel-dataset").is_visible()
    for name in ("interventions on thoughts", "linear probes"):
        one.page.get_by_role("checkbox", name=name).set_checked(name == "linear probes")
    one.page.locator("#run-dataset").click()
    one.wait("#dataset-state .finding")
    one.wait("#dataset-probes .js-plotly-plot")
    assert one.page.locator("#dataset-table tbody tr").count() >= 3 + 6
    one.inspect("dataset")
    one.shoot("dataset")

    one.tab("Export")
    one.page.locator("#run-export").click()
    one.wait("#export-files a")
    with one.page.expect_download() as download:
        one.page.get_by_role("link", name="think.json").click()
    assert json.loads(Path(download.value.path()).read_text(encoding="utf-8"))["model"] == "coconut"
    names = one.page.locator("#export-files a").all_inner_texts()
    assert {"think-thoughts.csv", "think-thoughts.png", "think-layers.png"} <= set(names)
    one.inspect("export")
    one.shoot("export")


def test_it_fits_a_phone_and_is_reached_by_the_keyboard(desk):
    """The results of all pages on a narrow screen, light and dark."""
    desk.page.set_viewport_size({"width": 400, "height": 900})
    desk.tab("Think")
    desk.mark_answer()
    desk.page.locator("#run-think").focus()
    desk.page.keyboard.press("Enter")
    desk.wait_for_equal_answer()
    for name in TABS:
        desk.tab(name)
        time.sleep(0.3)
        if name == "Intervene":
            assert desk.page.locator("#intervene-table table").is_visible(), "no other page's run hides it"
        assert desk.page.evaluate("document.documentElement.scrollWidth") <= 400, name
        # Colours do not depend on the width. Only here, a button opens the list of further tabs.
        desk.inspect(f"phone: {name}", dark=name == TABS[0], plots=False)
        desk.page.evaluate("document.body.classList.toggle('dark')")
        desk.shoot(f"phone-{name.lower().replace(' ', '-')}")
        desk.page.evaluate("document.body.classList.toggle('dark')")


@pytest.mark.parametrize("questions", [(STRANGE,), tuple(REFUSALS)], ids=["strange text", "refused"])
def test_strange_questions(desk, questions):
    """The question is answered, or refused with advice; its text is never executed, and no raw error is shown."""
    desk.tab("Think")
    for question in questions:
        desk.ask(question)
        if question in REFUSALS:
            desk.wait(f"#think-message .notice:has-text('{REFUSALS[question]}')")
        else:
            desk.wait_for_answer()
        assert desk.page.evaluate("window.hacked") is None
        assert "Traceback" not in desk.page.content()
        assert desk.page.locator("script:has-text('alert(')").count() == 0
    if "{{" in question:
        desk.tab("Compare")
        desk.page.locator("#run-compare").click()
        # Shown as it was typed: no template of the page interprets it.
        playwright.expect(desk.page.locator("#compare-first .side-text")).to_have_text(question, timeout=PATIENCE_MS)


def test_a_slow_browser_shows_every_figure(visit):
    think_in_a_slow_browser(visit)


def test_long_work_is_cancelled(desk):
    desk.choose_file("long", LONG[0].question)
    desk.tab("Data set")
    for name in ("interventions on thoughts", "linear probes"):
        desk.page.get_by_role("checkbox", name=name).set_checked(name == "interventions on thoughts")
    # A fast server must not be done before a slow browser clicks on Cancel.
    for label in ("Number of problems", "Draws per problem"):
        field = desk.page.get_by_label(f"number input for {label}")
        field.fill(field.get_attribute("max"))
    desk.page.locator("#run-dataset").click()
    desk.wait("#dataset-state progress")
    desk.page.locator("#cancel-dataset").click()
    desk.wait("#dataset-state .finding:has-text('Cancelled')")
    # The model is free for the next question.
    desk.choose_file("sums", SUMS[0].question)
    desk.tab("Think")
    desk.ask(SUMS[1].question)
    desk.wait_for_answer()


def test_a_link_restores_the_view_and_the_graph_is_drawn(visit, desk):
    """Every control has another value than at the start; the link is opened in a fresh browser."""
    change_everything(desk)
    desk.tab("Search")
    desk.page.locator("#run-search").click()
    desk.wait("#search-graph svg")
    desk.set_number("after", 2)
    desk.wait("#search-graph svg[aria-label*='after 2 thoughts']")
    expected, table = desk.controls(), "".join(desk.page.locator("#search-table").text_content().split())
    desk.tab("Export")
    desk.page.get_by_role("radio", name="Search").check()
    desk.page.locator("#run-export").click()
    link = desk.page.locator("#export-link textarea, #export-link input").first
    playwright.expect(link).to_have_value(re.compile("view=search"), timeout=PATIENCE_MS)
    with visit(f"?{link.input_value().partition('?')[2]}") as one:
        one.wait("#search-graph svg")
        one.inspect("search")
        found = one.controls()
        assert found == expected
        same = [name for name, value in desk.defaults.items() if value == expected[name] and value is not False]
        assert same == []
        one.tab("Search")
        assert "".join(one.page.locator("#search-table").text_content().split()) == table
        assert one.page.locator("#search-graph g.node.target").count() == 2  # the edges in the graph and in the legend
        before = one.page.locator("#search-graph svg").first.get_attribute("aria-label")
        one.page.locator("#after input[type=number]").fill("0")
        one.page.locator("#after input[type=number]").press("Enter")
        one.wait("#search-graph svg[aria-label*='after 0 thoughts']")
        assert "after 2 thoughts" in before
        one.shoot("search")


def test_a_visitor_without_runs_first_sees_a_model_that_searches(visit):
    with (
        serving(str(ROOT / "examples" / "checkpoints"), options=("--app",)) as served,
        visit(at=f"{served.url}/app/") as one,
    ):
        one.wait("#search-graph svg")
        assert one.page.get_by_role("tab", name="Search", exact=True).get_attribute("aria-selected") == "true"
        assert "graph_search" in one.page.locator("#model input").first.input_value()
        one.inspect("search")
        one.shoot("first-sight")


def test_behind_a_proxy_that_says_nothing(visit, server):
    """The proxy removes the prefix, and the server knows neither it nor the host that the browser sees.

    It also forwards events slowly: a page that learns late that its stream has ended must not wait for further events.
    """
    with proxying(server.url, "/a/b", strips=True, keeps_host=False, stream_pause_s=0.1) as proxy:
        use_under_a_prefix(visit, proxy, "/a/b", None)


def test_a_question_asked_while_the_end_of_the_last_stream_is_under_way(visit, server):
    """The server has ended the stream, the page does not know it yet, and the next question needs a new stream."""
    late = LateEnds()
    with proxying(server.url, "/a", strips=True, late=late) as proxy, visit(at=f"{proxy}/a/app/") as one:
        one.tab("Export")
        one.page.locator("#run-export").click()
        assert late.holding.wait(60)
        one.tab("Think")
        one.ask("hello")
        one.wait_for_answer()


def test_behind_a_proxy_that_keeps_the_prefix_with_a_password(visit, tmp_path):
    options = ("--app", "--root-path", "/a/b")
    with (
        serving(save_checkpoint(tmp_path / "model"), key="open sesame", options=options) as locked,
        proxying(locked.url, "/a/b", strips=False) as proxy,
    ):
        assert httpx.get(f"{proxy}/a/b/app/", timeout=30).status_code == 401
        use_under_a_prefix(visit, proxy, "/a/b", "open sesame")


def test_a_password_covers_every_path_and_no_endpoint_is_public(server, tmp_path):
    """Without a key every page is open on loopback, but no API for programs; with a key nothing is open.

    A page that is left open does not keep the server from stopping.
    """
    with server.client() as client:
        info = client.get("/app/gradio_api/info").json()
        assert (info["named_endpoints"], info["unnamed_endpoints"]) == ({}, {})
        config = client.get("/app/config", headers={"Host": "example.org", "Origin": "https://other.example.org"})
        assert not config.json()["analytics_enabled"]
        assert not any(name.startswith("access-control") for name in config.headers)
        page = client.get("/app/").text
        assert "fonts.googleapis" not in page
        assert client.get(f"/app/gradio_api/file={ROOT / 'pyproject.toml'}").status_code in (403, 404)
    with serving(save_checkpoint(tmp_path / "model"), key="open sesame", options=("--app",)) as locked:
        for path in ("/app/", "/app/config", "/app/theme.css", "/manifest.json"):
            assert httpx.get(locked.url + path, timeout=30).status_code == 401, path
        assert httpx.get(locked.url + "/app/", auth=("me", "open sesame"), timeout=30).status_code == 200
        page = httpx.stream("GET", f"{locked.url}/app/gradio_api/heartbeat/tab", auth=("me", "open sesame"), timeout=30)
        with page as heartbeat:
            assert heartbeat.status_code == 200
            assert next(heartbeat.iter_raw())
            assert locked.stop(limit_s=15) == 0
