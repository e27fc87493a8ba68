"""Keys, their clients and limits; host names and origins: what the guards let in, in process."""

import hashlib
import json
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from making_guards import KEY, Exchange, Guarded, basic, bearer, echo

from coconut_ds.errors import ConfigError
from serve.api import guards
from serve.clients.access import Access
from serve.clients.addresses import Hosts, hosts_for, networks_of, source_of
from serve.clients.client import Client
from serve.clients.keys import VARIABLE, Keys, read_keys
from serve.clients.rates import Rates

ALICE = Client("key:alice", 16, 2)
BOB = Client("key:bob")
LINES = [
    "# who may use it",
    '{"name": "alice", "key": "a b", "max_waiting": 16, "requests_per_minute": 2}',
    "",
    json.dumps({"name": "bob", "sha256": hashlib.sha256(b"bobs").hexdigest()}),
]


@pytest.fixture
def keys(tmp_path):
    (tmp_path / "keys").write_text("\n".join(LINES))
    return read_keys(tmp_path / "keys")


# --- reading


def test_a_file_has_several_keys_with_limits_or_one(tmp_path, keys):
    assert [keys.client_of(one) for one in (b"a b", b"bobs", b"b", b"")] == [ALICE, BOB, None, None]
    for content in ("open sesame\n", "\ufeffopen sesame\r\n", "  open sesame", "# old\n\nopen sesame\n#"):
        (tmp_path / "one").write_text(content, encoding="utf-8", newline="")
        assert read_keys(tmp_path / "one").client_of(b"open sesame") == Client("key:default")


@pytest.mark.parametrize(
    ("lines", "says"),
    [
        ("", "is empty"),
        ("# old-key\n", "has no key"),
        ("a\nb", "has 2 lines"),
        ("a\tb", "U+0009"),
        ("x" * 1025, "1025 characters"),
        ([LINES[1], "bob"], "line 2: is not valid JSON"),
        ([LINES[1], "[1]"], "line 2: expected a JSON object"),
        ([LINES[1], LINES[1].replace("alice", "bob")], "line 2: has the same key as line 1"),
        ([LINES[1], '{"name": "alice", "key": "b"}'], "line 2: has the same name as line 1"),
        (['{"name": "a", "key": ""}'], "line 1: is empty"),
        (['{"name": "a", "key": " a"}'], "begins or ends with a space"),
        (['{"name": "a", "key": 1}'], "line 1: key is of type int; expected a text"),
        (['{"name": "a b", "key": "c"}'], "expected a name"),
        (['{"key": "c"}'], "expected a name"),
        (['{"name": "a"}'], "either key or sha256"),
        (['{"name": "a", "sha256": "12"}'], "64 hexadecimal digits"),
        (['{"name": "a", "key": "c", "max_waiting": 0}'], "max_waiting is 0; expected a whole number from 1"),
        (['{"name": "a", "key": "c", "max_waiting": true}'], "max_waiting is true"),
        (['{"name": "a", "key": "c", "limit": 1}'], "the field 'limit' is unknown"),
    ],
)
def test_a_key_file_that_cannot_be_used_is_refused_with_the_line(tmp_path, lines, says):
    """The message never contains a key."""
    (tmp_path / "keys").write_text(lines if isinstance(lines, str) else "\n".join(lines))
    with pytest.raises(ConfigError) as told:
        read_keys(tmp_path / "keys")
    assert says in str(told.value)
    assert str(tmp_path / "keys") in str(told.value)
    assert '"key": "a b"' not in str(told.value)


def test_the_variable_may_end_with_a_newline_and_must_not_be_blank(monkeypatch):
    monkeypatch.delenv(VARIABLE, raising=False)
    assert read_keys(None) is None
    monkeypatch.setenv(VARIABLE, " sesame\n")
    assert read_keys(None).client_of(b"sesame") is not None
    for blank in ("", "\n", " \t"):
        monkeypatch.setenv(VARIABLE, blank)
        with pytest.raises(ConfigError, match=f"{VARIABLE}: is empty"):
            read_keys(None)


# --- clients and rates


def guarded(app=echo, **access):
    made = Guarded(app)
    made._guards._access = Access(**access)
    return made


def test_a_route_is_told_which_client_asks(keys):
    seen = []

    async def app(scope, receive, send):
        seen.append(guards.client_of(SimpleNamespace(state=SimpleNamespace(**scope["state"]))))
        await echo(scope, receive, send)

    for key in ("a b", "bobs"):
        guarded(app, keys=keys).ask("/x", headers={**bearer(key), b"x-forwarded-for": b"9.9.9.9"})
    assert seen == [ALICE, BOB]
    proxies = networks_of(["10.0.0.0/8", "::1"])
    for peer, forwarded, sender in [
        ("10.1.2.3", b"6.6.6.6, 9.9.9.9:80, 10.0.0.1", "9.9.9.9"),
        ("10.1.2.3", b"6.6.6.6, nonsense", "10.1.2.3"),
        ("10.1.2.3", b"", "10.1.2.3"),
        ("8.8.8.8", b"9.9.9.9", "8.8.8.8"),
        ("::1", b"[2001:db8:1:2:3::4]:99", "2001:db8:1:2::/64"),
        ("::ffff:8.8.8.8", b"", "8.8.8.8"),
    ]:
        made = guarded(app, proxies=proxies)
        made.client = (peer, 1)
        made.ask(headers={b"x-forwarded-for": forwarded})
        assert seen.pop() == Client(f"address:{sender}")
    guarded(app).ask()
    assert seen.pop() == Client("address:unknown")


@settings(deadline=None, max_examples=30)
@given(
    st.lists(st.tuples(st.floats(0, 30), st.sampled_from("ab")), max_size=40),
    st.integers(1, 6),
)
def test_rates_are_those_of_a_bucket_that_fills_evenly(events, per_minute):
    """Compared with a bucket for each source that is filled in small steps."""
    now, rates, buckets, since = [0.0], Rates(lambda: now[0]), dict.fromkeys("ab", float(per_minute)), 0.0
    for pause, source in events:
        now[0] += pause
        for one in buckets:
            buckets[one] = min(per_minute, buckets[one] + (now[0] - since) * per_minute / 60)
        since = now[0]
        wait_s = rates.wait_s(source, per_minute)
        assert wait_s == pytest.approx(max(0.0, 1 - buckets[source]) * 60 / per_minute, abs=1e-6)
        if wait_s <= 0:
            rates.add(source, per_minute)
            buckets[source] -= 1


def test_a_client_that_has_made_its_requests_is_told_when_to_go_on(keys):
    """Only requests for text count. Another client's are answered, and without keys each address is a client."""
    made = guarded(keys=keys, requests_per_minute=3)
    alice, bob = bearer("a b"), bearer("bobs")
    assert [made.ask(headers=alice).status for _ in range(3)] == [200, 200, 429]
    answer = made.ask(headers=alice)
    assert 1 <= int(answer.header("retry-after")[0]) <= 30
    assert json.loads(answer.body)["error"]["code"] == "rate_limit_exceeded"
    assert made.ask("/v1x", headers=alice).status == made.ask("/health").status == 200
    assert [made.ask(headers=bob).status for _ in range(4)] == [200, 200, 200, 429]
    free = guarded(requests_per_minute=1)
    assert [free.ask().status for _ in range(2)] == [200, 429]
    free.client = ("8.8.8.8", 1)
    assert free.ask().status == 200


def test_many_wrong_keys_of_an_address_are_refused_and_the_right_one_is_not(caplog):
    made = Guarded(key=KEY)
    statuses = [made.ask("/x", headers=bearer(f"guess{n}")).status for n in range(100)]
    assert statuses == [401] * guards.WRONG_KEYS_PER_MINUTE + [429] * (100 - guards.WRONG_KEYS_PER_MINUTE)
    assert made.ask("/x", headers=bearer("guess")).header("retry-after") == ["2"]
    assert made.ask("/x", headers=bearer(KEY)).status == 200
    assert made.ask("/x").status == 401, "who sends no key does not guess"
    made.client = ("8.8.8.8", 1)
    assert made.ask("/x", headers=bearer("guess")).status == 401
    assert len([one for one in caplog.records if "wrong key" in one.message]) == 1
    made.log.flush(everything=True)
    assert "(102 of this kind" in caplog.records[-1].message
    assert "guess" not in caplog.text


# --- host names, origins, headers


@pytest.mark.parametrize(
    ("listens", "allowed", "has_keys", "accepted", "refused"),
    [
        (
            "127.0.0.1",
            [],
            False,
            "localhost localhost:80 127.0.0.1:9 [::1]:9 LOCALHOST. 127.9.9.9",
            "a.b a.b:80 8.8.8.8",
        ),
        ("::1", [], False, "localhost", "a.b 127.0.0.1.nip.io localhost.a.b"),
        ("127.0.0.1", [], True, "localhost a.b", ""),
        ("127.0.0.1", ["a.b"], True, "localhost a.b", "c.d"),
        ("127.0.0.1", ["A.b", "*.c.d"], False, "localhost a.b a.b:1 x.c.d", "c.d x.a.b xc.d 8.8.8.8"),
        ("127.0.0.1", ["*"], False, "localhost a.b", ""),
        ("0.0.0.0", [], False, "localhost 8.8.8.8:1 [2001:db8::1]:2 0.0.0.0", "a.b"),
        ("models", [], False, "models 8.8.8.8", "a.b"),
        ("0.0.0.0", [], True, "a.b 8.8.8.8", ""),
        ("0.0.0.0", ["a.b"], True, "a.b 8.8.8.8", "c.d"),
    ],
)
def test_only_allowed_host_names_are_answered(listens, allowed, has_keys, accepted, refused):
    """What a page on the web under its own name sends to this machine (DNS rebinding) is not answered."""
    made = guarded(hosts=hosts_for(listens, allowed, has_keys))
    for status, names in ((200, accepted), (421, refused)):
        for name in names.split():
            assert made.ask(headers={b"host": name.encode()}).status == status, name
    assert made.ask().status == 200, "HTTP 1.0 has no such header"


def test_options_that_are_no_host_or_no_address():
    for host in ("http://a.b", "a b", "a.b:80", ""):
        with pytest.raises(ConfigError, match="--allowed-host"):
            hosts_for("127.0.0.1", [host], False)
    with pytest.raises(ConfigError, match="--trusted-proxy proxy"):
        networks_of(["proxy"])
    assert source_of("no address") == "no address"


OWN, OTHER = {b"origin": b"http://localhost:1"}, {b"origin": b"http://a.b"}
CROSS = {b"sec-fetch-site": b"cross-site"}


@pytest.mark.parametrize(
    ("headers", "get", "post"),
    [
        ({}, 200, 200),
        (OWN, 200, 200),
        (OTHER, 200, 403),
        ({b"origin": b"null"}, 200, 403),
        ({b"origin": b"http://localhost:2"}, 200, 403),
        ({b"origin": b"http://["}, 200, 403),
        ({**OTHER, b"sec-fetch-site": b"same-origin"}, 200, 200),
        ({**OTHER, **CROSS}, 403, 403),
        ({b"sec-fetch-site": b"same-site"}, 403, 403),
        ({**CROSS, b"sec-fetch-mode": b"navigate"}, 200, 403),
        ({b"sec-fetch-site": b"none", b"sec-fetch-mode": b"navigate"}, 200, 200),
        ({b"origin": b"https://known.org"}, 200, 200),
        ({b"origin": b"https://known.org", **CROSS}, 200, 200),
    ],
)
def test_pages_of_other_sites_do_not_use_the_app(headers, get, post):
    """A browser behind a proxy that changes the host says itself that the page is the app's own."""
    made = guarded(hosts=Hosts(allowed=frozenset({"known.org"})))
    made._guards._mounts = ("/app",)
    headers = {b"host": b"localhost:1", **headers}
    for method, status in (("GET", get), ("POST", post)):
        made.method = method
        assert made.ask("/app/gradio_api/queue/join", headers=headers).status == status, method
        assert made.ask("/apple", headers=headers).status == 200


def test_requests_that_can_be_read_in_two_ways_are_refused():
    for headers in (
        [(b"authorization", b"Bearer a"), (b"authorization", b"Bearer b")],
        [(b"host", b"localhost"), (b"host", b"a.b")],
        [(b"content-length", b"3"), (b"transfer-encoding", b"chunked")],
    ):
        exchange = Guarded().ask(headers=headers, exchange=Exchange([b"abc"]))
        assert (exchange.status, exchange.num_received) == (400, 0)
    assert Guarded(key=KEY).ask(headers=basic(KEY)).status == 200


def test_keys_are_kept_as_digests_only():
    assert KEY not in repr(vars(Keys.single(KEY)))
