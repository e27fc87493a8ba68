"""IP addresses and host names: of clients, of proxies, and those under which clients may address the server."""

import ipaddress
import re
import socket
from collections.abc import Sequence
from dataclasses import dataclass

from coconut_ds.errors import ConfigError

LOOPBACK = ("127.0.0.1", "::1", "localhost")
"""Values of ``--host`` that only let the same machine connect."""
ANY = "*"
HOST = re.compile(r"[a-z0-9_.-]{1,253}")
AddressRange = ipaddress.IPv4Network | ipaddress.IPv6Network
Address = ipaddress.IPv4Address | ipaddress.IPv6Address


@dataclass(frozen=True)
class Hosts:
    """The names under which clients may address the server, in the header ``Host``.

    A page on the web can let its own host name lead to any address (DNS rebinding), and the browser of a visitor then
    takes a server there for the page's own. The header still has the name of the page.
    """

    own: frozenset[str] = frozenset({"localhost"})
    """Names that the server has without being told, in lower case."""
    allowed: frozenset[str] = frozenset()
    """Names and addresses that ``--allowed-host`` adds: ``*.NAME`` stands for all below it, ``*`` for all."""
    addresses: str = "loopback"
    """IP addresses that are accepted as well: ``loopback`` or ``all``. No page can have one as its name."""

    def allow(self, header: str) -> bool:
        """Whether the value of a header ``Host`` is accepted."""
        name = host_of(header)
        if ANY in self.allowed or name in self.own or self.names(name):
            return True
        address = address_of(name)
        return address is not None and (self.addresses == "all" or address.is_loopback)

    def names(self, name: str) -> bool:
        """Whether ``--allowed-host`` gives this name, other than by ``*``."""
        return name in self.allowed or any(
            one.startswith("*.") and name.endswith(one.removeprefix("*")) for one in self.allowed
        )


ALL_HOSTS = Hosts(allowed=frozenset({ANY}))


def hosts_for(listens_on: str, allowed: Sequence[str], has_keys: bool) -> Hosts:
    """The host names that a server accepts.

    Args:
        listens_on: the value of ``--host``.
        allowed: the values of ``--allowed-host``.
        has_keys: whether clients must have a key.

    Raises:
        ConfigError: a value is not a host name.
    """
    names = set()
    for one in allowed:
        name = one.strip().lower().strip("[]").rstrip(".")
        if name != ANY and address_of(name) is None and not HOST.fullmatch(name.removeprefix("*.")):
            raise ConfigError(
                f"--allowed-host {one}: expected a host name or an IP address, without scheme, port and path, "
                "such as models.example.org, or *.example.org for all below it, or * for all"
            )
        names.add(name)
    if not names and has_keys:
        # A page under another name has no key, and the browser does not send it the one that it knows.
        return ALL_HOSTS
    if listens_on in LOOPBACK:
        return Hosts(allowed=frozenset(names))
    own = {"localhost", listens_on.lower(), socket.gethostname().lower()}
    return Hosts(frozenset(own), frozenset(names), addresses="all")


def networks_of(proxies: Sequence[str]) -> tuple[AddressRange, ...]:
    """The values of ``--trusted-proxy`` as networks.

    Raises:
        ConfigError: a value is neither an IP address nor a network.
    """
    found = []
    for one in proxies:
        try:
            found.append(ipaddress.ip_network(one.strip(), strict=False))
        except ValueError as error:
            raise ConfigError(
                f"--trusted-proxy {one}: expected the IP address of a proxy, such as 127.0.0.1, or a network, such as "
                "10.0.0.0/8"
            ) from error
    return tuple(found)


def source_of(address: str) -> str:
    """What one sender can choose freely is left out: of an IPv6 address, all but the network of 64 bits."""
    found = address_of(address)
    if found is None:
        return address
    if isinstance(found, ipaddress.IPv6Address):
        if found.ipv4_mapped is not None:
            return str(found.ipv4_mapped)
        if not found.is_loopback:
            return str(ipaddress.ip_network((int(found), 64), strict=False))
    return str(found)


def host_of(header: str) -> str:
    """The name or address in ``HOST``, ``HOST:PORT`` or ``[ADDRESS]:PORT``, in lower case."""
    text = header.strip().lower()
    if text.startswith("["):
        return text[1:].partition("]")[0]
    return text.rstrip(".") if text.count(":") > 1 else text.partition(":")[0].rstrip(".")


def address_of(text: str) -> Address | None:
    """The IP address that a text is; None if it is none."""
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        return None
