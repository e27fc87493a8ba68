"""Which requests to the app come from pages of other sites, which may not use it."""

from collections.abc import Sequence
from urllib.parse import urlsplit

from serve.api.prefix import Scope
from serve.clients.addresses import Hosts, host_of

SAFE = frozenset({"GET", "HEAD", "OPTIONS"})
OWN = frozenset({b"same-origin", b"none"})
"""Values of ``Sec-Fetch-Site`` of requests by the app's own page, and by the visitor."""


def is_foreign(scope: Scope, hosts: Hosts) -> bool:
    """Whether a page of another site makes this request, other than by a link to the page.

    Browsers say so in ``Sec-Fetch-Site``, which scripts cannot set. Where they do not send it (pages over plain HTTP
    from another machine), the request's ``Origin`` must be the host that it is sent to, or one that ``hosts`` names.
    Programs send neither.
    """
    site = values_of(scope, b"sec-fetch-site")
    if site and site[0] in OWN:
        return False
    if site:
        # A link from another page opens the app, which is harmless, since the page only shows what is in the link.
        is_link = scope.get("method") in SAFE and values_of(scope, b"sec-fetch-mode") == [b"navigate"]
        return not is_link and not _is_named(values_of(scope, b"origin"), hosts)
    origins = values_of(scope, b"origin")
    if not origins or scope.get("method") in SAFE:
        # Without permission from here, the page cannot read what it gets.
        return False
    hosts_sent = [value.decode("latin-1") for value in values_of(scope, b"host")]
    return hosts_sent != [_netloc(one) for one in origins] and not _is_named(origins, hosts)


def _is_named(origins: Sequence[bytes], hosts: Hosts) -> bool:
    """Whether the only origin is one that ``--allowed-host`` names."""
    return len(origins) == 1 and hosts.names(host_of(_netloc(origins[0])))


def _netloc(origin: bytes) -> str:
    """Host and port of an origin; empty if it has none."""
    try:
        return urlsplit(origin.decode("latin-1")).netloc
    except ValueError:
        return ""


def values_of(scope: Scope, name: bytes) -> list[bytes]:
    """All values of a header, whose name is in lower case."""
    return [value for key, value in scope["headers"] if key == name]
