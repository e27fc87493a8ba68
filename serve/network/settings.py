"""Where and how a server listens."""

import ssl
from dataclasses import dataclass

from serve.limits import ConnectionLimits


@dataclass(frozen=True)
class Network:
    """Where and how a server listens."""

    host: str
    port: int
    """0 chooses a free one, which the log reports."""
    root_path: str | None
    """The path under which a reverse proxy offers the server, see ``Prefix``."""
    tls: ssl.SSLContext | None
    """None: connections are not encrypted."""
    limits: ConnectionLimits
