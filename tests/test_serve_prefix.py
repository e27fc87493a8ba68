"""Behind a reverse proxy, under a prefix: every route is found there, and every address that is handed out has it."""

import asyncio
from urllib.parse import quote

import openai
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from serving import save_checkpoint
from starlette.testclient import TestClient

from coconut_ds.errors import ConfigError
from serve.api.app import create_app
from serve.api.prefix import ROUTES, Prefix, root_path_of, route_of
from serve.clients.access import Access
from serve.clients.keys import Keys
from serve.launch import make_service
from serve.limits import EngineSettings, Limits

KEY = "sesame"
PREFIX = "/user/jane@x.org/proxy/7860"
PARTS = st.text(st.sampled_from("abcdé日-_.~@:+,;=!$()*"), min_size=1, max_size=6)
PARTS = PARTS.filter(lambda part: part not in (".", "..") and part not in ROUTES)
PATHS = st.sampled_from(["/", "/health", "/v1/models/a/b", "/app", "/app/", "/app/assets/x.js"])
INVALID = ["a/b", "/a b", "//x.org", "/a//b", "/a/../b", "/..", "/.", "/a?b", "/a#b", "http://x.org/a", "/<script>"]
INVALID += ["/a'b", '/a"b', "/a&b", r"/a\b", "/a\nb", "/" + "a" * 600, "/%2e%2e", "/a%00", "/a%2", "/{a}"]


def seen(path, root_path=None, headers=(), below=""):
    """The scope that the app gets for a request. ``below``: the prefix that the server knows by itself."""
    scopes = []

    async def app(scope, receive, send):
        scopes.append(scope)

    sent = [(b"x-forwarded-prefix", value.encode("latin-1")) for value in headers]
    scope = {"type": "http", "path": path, "raw_path": quote(path).encode(), "root_path": below, "headers": sent}
    asyncio.run(Prefix(app, root_path)(scope, None, None))
    return scopes[0]


@settings(max_examples=40, deadline=None)
@given(st.lists(PARTS, min_size=1, max_size=4), PATHS, st.booleans())
def test_the_prefix_is_known_whether_or_not_the_proxy_removes_it(parts, path, strips):
    """The option, the header (in parts, from several proxies), and the server below, such as Ray's, mean the same."""
    prefix = "".join(f"/{part}" for part in parts)
    asked = path if strips else prefix + path
    encoded = [quote(f"/{part}") for part in parts]
    for scope in (
        seen(asked, root_path_of("".join(encoded) + "/"), ["/other"]),
        seen(asked, None, ["".join(encoded)]),
        seen(asked, None, encoded),
        seen(asked, None, [", ".join(f"{part}/" for part in encoded)]),
        seen(asked, None, ["/other"], below=prefix),
    ):
        assert (scope["root_path"], scope["path"], route_of(scope)) == (prefix, prefix + path, path)
        assert scope["raw_path"] == quote(prefix + path).encode()


@pytest.mark.parametrize("prefix", INVALID)
def test_what_is_not_a_prefix_is_refused_as_an_option_and_ignored_in_a_header(prefix):
    """No client can make the server write another host, or a script, into a page."""
    with pytest.raises(ConfigError, match="expected the path under which"):
        root_path_of(prefix)
    scope = seen("/app/", None, [prefix])
    assert (scope["root_path"], scope["path"]) == ("", "/app/")


def test_the_root_is_a_prefix_too_and_turns_the_header_off():
    assert {root_path_of(option) for option in ("", "/", "//")} == {""}
    assert seen("/app/", "", ["/other"])["root_path"] == ""
    assert seen("/app/", None, ["/"])["root_path"] == ""


def test_a_prefix_like_a_path_of_the_server_is_refused_or_taken_as_removed():
    with pytest.raises(ConfigError, match="the server's own paths begin with /app too"):
        root_path_of("/app/x")
    scope = seen("/app/", None, ["/app"])
    assert (scope["root_path"], route_of(scope)) == ("/app", "/app/")


@pytest.fixture(scope="module")
def app(tmp_path_factory):
    """The whole app behind a key, without a prefix of its own."""
    place = save_checkpoint(tmp_path_factory.mktemp("prefix") / "coconut")
    service, metrics = make_service([str(place)], EngineSettings(4), Limits())

    async def page(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": f"{scope['root_path']} {route_of(scope)}".encode()})

    yield create_app(service, metrics, Access(Keys.single(KEY)), {"/app": page})
    service.close()


@pytest.fixture(params=["removed", "kept"])
def behind(app, request):
    """A client that reaches the app through a proxy, which removes the prefix or keeps it."""
    base = f"http://testserver{PREFIX if request.param == 'kept' else ''}"
    headers = {"X-Forwarded-Prefix": quote(PREFIX)}
    with TestClient(app, base_url=base, headers=headers, follow_redirects=False) as one:
        yield one


def test_every_route_is_under_the_prefix(app, behind):
    """Only ``/health`` is open, as without a prefix; the description and the documentation name the prefix."""
    paths = [*app.openapi()["paths"], *(getattr(route, "path", "/") for route in app.routes)]
    assert {path.split("/")[1] for path in paths} - {""} <= ROUTES, "add the first part of the new route"
    assert behind.get("/health").status_code == 200
    assert {behind.get(path).status_code for path in ("/v1/models", "/metrics", "/app/")} == {401}
    behind.headers["Authorization"] = f"Bearer {KEY}"
    assert behind.get("/v1/models").json()["data"][0]["id"] == "coconut"
    assert behind.get("/metrics").status_code == 200
    assert behind.get("/openapi.json").json()["servers"] == [{"url": PREFIX}]
    assert "openapi.json" in behind.get("/docs").text
    assert behind.get("/app/a/b").text == f"{PREFIX}/app /a/b"
    answer = behind.get("/app?view=think&question=a%20b")
    assert (answer.status_code, answer.headers["location"]) == (307, "./app/?view=think&question=a%20b")


@pytest.mark.parametrize("stream", [False, True])
def test_openais_client_works_under_the_prefix(app, stream):
    transport = TestClient(app, headers={"X-Forwarded-Prefix": PREFIX})
    client = openai.OpenAI(base_url=f"http://testserver{PREFIX}/v1", api_key=KEY, max_retries=0, http_client=transport)
    assert [model.id for model in client.models.list()] == ["coconut"]
    made = client.completions.create(model="coconut", prompt="a", max_tokens=3, stream=stream)
    assert list(made) if stream else made.choices
