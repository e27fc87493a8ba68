"""The options that say where the server listens, and how it treats connections."""

import argparse
from pathlib import Path

from serve.api.prefix import root_path_of
from serve.limits import ConnectionLimits
from serve.network.descriptors import max_connections, raise_limit
from serve.network.settings import Network
from serve.network.tls import tls_of


def add_network_options(parser: argparse.ArgumentParser, port: int) -> None:
    """Adds the options; ``port`` is the default port."""
    limits, add = ConnectionLimits(), parser.add_argument
    add("--host", default="127.0.0.1", help="address to listen on")
    add("--port", type=int, default=port, help="port to listen on; 0 chooses a free one")
    add(
        "--root-path",
        metavar="PATH",
        help="path under which a reverse proxy offers the server, such as /models; default: what the proxy sends as "
        "X-Forwarded-Prefix, which '/' makes the server ignore",
    )
    add(
        "--tls-cert", type=Path, metavar="FILE", help="certificate, in PEM format, with which connections are encrypted"
    )
    add("--tls-key", type=Path, metavar="FILE", help="private key of the certificate, in PEM format, not encrypted")
    add(
        "--max-connections",
        type=int,
        metavar="N",
        help="connections at the same time; default: what the limit of open files leaves, up to 4096",
    )
    add(
        "--head-s",
        type=float,
        default=limits.head_s,
        help="seconds that the head of a request may take, from its first byte or the opening of the connection",
    )
    add(
        "--idle-s",
        type=float,
        default=limits.idle_s,
        help="seconds that a connection is kept open without a request",
    )


def network_of(arguments: argparse.Namespace) -> Network:
    """Where and how the server listens, according to the options. Raises the process's limit of open files.

    Raises:
        ConfigError: an option is not valid, or a certificate cannot be used.
    """
    root_path = None if arguments.root_path is None else root_path_of(arguments.root_path)
    tls = tls_of(arguments.tls_cert, arguments.tls_key)
    most = max_connections(raise_limit(), arguments.max_connections)
    limits = ConnectionLimits(most, arguments.head_s, arguments.idle_s)
    return Network(arguments.host, arguments.port, root_path, tls, limits)
