"""The pages ``/`` and ``/docs``: complete, and without anything from other hosts. HEAD works wherever GET does."""

from html.parser import HTMLParser
from types import SimpleNamespace
from urllib.parse import urljoin

import pytest
from prometheus_client import CollectorRegistry, Counter
from starlette.responses import PlainTextResponse
from starlette.testclient import TestClient

from coconut_ds.model.card import ModelCard
from serve.api.app import create_app
from serve.api.neutral import REQUEST
from serve.checkpoints.offered import Checkpoints, ServedCheckpoint
from serve.limits import Limits

HOSTILE = "<script>alert('a & b')</script>"
VOID = {"meta", "link", "br"}


class Page(HTMLParser):
    """Links, texts of tags and fragments of a page; fails on tags that are not closed in order."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.ids: set[str] = set()
        self.tags: set[str] = set()
        self.text = ""
        self._open: list[str] = []
        self.feed(html)
        assert self._open == []

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        if tag not in VOID:
            self._open.append(tag)
        for name, value in attrs:
            assert not name.startswith("on")
            if name in ("href", "src", "action"):
                self.links.append(value)
            if name == "id":
                self.ids.add(value)

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        self.text += f"{data} "


@pytest.fixture(scope="module")
def app(tmp_path_factory):
    """The whole app over a service that has loaded no model."""
    folder = tmp_path_factory.mktemp("pages")
    (folder / "coconut.json").write_text("{}")
    served = ServedCheckpoint("m", folder, folder, ModelCard("cot", 0, 0, 1, 1, {}))
    counter = Counter("answers", "Answers.", ("status",), registry=CollectorRegistry())
    metrics = SimpleNamespace(http_requests=counter, registry=CollectorRegistry())
    models = SimpleNamespace(loaded={}, checkpoints=Checkpoints([served]))
    service = SimpleNamespace(limits=Limits(), models=models, draining=False, problems={}, num_requests=0)

    async def mounted(scope, receive, send):
        await PlainTextResponse(scope["method"])(scope, receive, send)

    return create_app(service, metrics, mounts={"/app": mounted, "/favicon.ico": PlainTextResponse("icon")})


@pytest.fixture(scope="module")
def http(app):
    with TestClient(app) as one:
        yield one


def gets(app) -> list[str]:
    return ["/", "/docs", *(path for path, methods in app.openapi()["paths"].items() if "get" in methods)]


def test_the_documentation_names_every_route_object_and_field(app, http):
    page, described = Page(http.get("/docs").text), app.openapi()
    for path in described["paths"]:
        assert path in page.text
    for name, schema in described["components"]["schemas"].items():
        assert name in page.ids
        for field, about in schema.get("properties", {}).items():
            assert field in page.text.split()
            assert "`" in (told := about.get("description", "")) or told in page.text
    assert set(REQUEST) <= set(page.text.split())
    assert "-H 'Content-Type: application/json'" in page.text


@pytest.mark.parametrize("path", ["/", "/docs"])
def test_pages_load_nothing_and_their_links_exist(http, path):
    """Behind a prefix too: no link begins with a slash or names a host."""
    answer = http.get(path)
    assert (answer.status_code, answer.headers["content-type"]) == (200, "text/html; charset=utf-8")
    page = Page(answer.text)
    assert page.tags & {"script", "iframe", "img"} == set()
    assert page.links
    for link in page.links:
        if link.startswith("#"):
            assert link[1:] in page.ids
        elif link != "data:,":
            assert "//" not in link
            assert not link.startswith("/")
            assert http.get(urljoin(path, link)).status_code == 200, link


def test_names_of_checkpoints_are_text(app, http, monkeypatch):
    from serve.api.pages import index_page

    page = Page(index_page("t", "1", [HOSTILE], ["/app"]))
    assert "script" not in page.tags
    assert HOSTILE in page.text
    assert "app/" in page.links


def test_head_is_answered_like_get_without_the_body(app, http):
    for path in [*gets(app), "/nothing", "/v1/completions"]:
        path = path.replace("{model}", "m")
        get, head = http.get(path), http.head(path)
        assert (head.status_code, head.content) == (get.status_code, b""), path
        changing = {"x-request-id", "content-length"} if path == "/metrics" else {"x-request-id"}
        assert {key: value for key, value in head.headers.items() if key not in changing} == {
            key: value for key, value in get.headers.items() if key not in changing
        }
    assert http.head("/health").status_code == 200


def test_mounted_apps_get_head_requests_themselves(http):
    """A GET request to the browser app's stream of events would never end."""
    assert http.head("/app").headers["content-length"] == str(len("HEAD"))
    assert http.head("/app/gradio_api/heartbeat/x").headers["content-length"] == str(len("HEAD"))
    assert http.get("/app").text == "GET"
    assert http.head("/apple").status_code == 404
