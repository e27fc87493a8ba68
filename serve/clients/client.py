"""Clients of the server, between which it divides its time, and the limits of each."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Client:
    """A source of requests: the holder of an API key, or one network address where no key is required."""

    name: str
    """Distinguishes clients, and is written to the log: ``key:NAME``, ``address:HOST``, or ``in-process``."""
    max_waiting: int | None = None
    """Completions of this client per model that may wait for a slot; None: ``Limits.max_waiting`` alone limits them."""
    requests_per_minute: int | None = None
    """Requests for text that this client may make per minute; None: ``Access.requests_per_minute`` limits them."""


IN_PROCESS = Client("in-process")
"""The program that runs the server, including the app."""
