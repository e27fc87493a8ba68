"""Who may use the server: its keys, the host names that it answers to, and the proxies whose word it takes."""

from collections.abc import Sequence
from dataclasses import dataclass

from serve.clients.addresses import ALL_HOSTS, AddressRange, Hosts, address_of, host_of, source_of
from serve.clients.client import Client
from serve.clients.keys import Keys


@dataclass(frozen=True)
class Access:
    """Who may use the server."""

    keys: Keys | None = None
    """None: no key is required."""
    hosts: Hosts = ALL_HOSTS
    proxies: tuple[AddressRange, ...] = ()
    """Addresses of reverse proxies, whose header ``X-Forwarded-For`` is believed."""
    requests_per_minute: int | None = None
    """Requests for text per minute and client, unless the client's key has a limit of its own; None: no limit."""

    def trusts(self, address: str) -> bool:
        """Whether this is the address of a trusted proxy."""
        found = address_of(address)
        return found is not None and any(found in network for network in self.proxies)

    def sender_of(self, peer: str, forwarded: Sequence[str]) -> str:
        """The address from which a request comes.

        Args:
            peer: the address of the connection.
            forwarded: values of the header ``X-Forwarded-For``. Each proxy has added the address that it saw at the
                end, so the last one that is not a trusted proxy's is the client's; anybody may have written the others.
        """
        sender = peer
        for entry in reversed([part.strip() for value in forwarded for part in value.split(",")]):
            if not self.trusts(sender) or address_of(host_of(entry)) is None:
                break
            sender = host_of(entry)
        return source_of(sender)


def client_at(sender: str) -> Client:
    """The client of a server that requires no key."""
    return Client(f"address:{sender}")
