"""The options that say who may use the server, and under which names."""

import argparse
from pathlib import Path
from typing import Any

from coconut_ds.errors import ConfigError
from serve.clients.access import Access
from serve.clients.addresses import LOOPBACK, hosts_for, networks_of
from serve.clients.keys import VARIABLE, Keys, read_keys


def add_access_options(parser: argparse.ArgumentParser, key_file: str, key_help: str, **more: Any) -> None:
    """Adds the options.

    Args:
        parser: of the command.
        key_file: name of the option for the file with the keys.
        key_help: what the file holds.
        more: further arguments of that option.
    """
    add = parser.add_argument
    add(
        key_file,
        type=Path,
        dest="api_key_file",
        help=f"{key_help}; default: the environment variable {VARIABLE}",
        **more,
    )
    add("--no-key", action="store_true", help="allow other machines to connect without a key")
    add(
        "--allowed-host",
        action="append",
        default=[],
        metavar="NAME",
        help="host name under which clients may address the server, such as that of a reverse proxy, or * for all; may "
        "be given several times; default: all names if there is a key; without one, localhost and loopback addresses "
        "if the server listens on loopback, otherwise IP addresses and this machine's names",
    )
    add(
        "--trusted-proxy",
        action="append",
        default=[],
        metavar="ADDRESS",
        help="IP address or network of a reverse proxy, whose header X-Forwarded-For says where a request comes from; "
        "may be given several times",
    )
    add(
        "--requests-per-minute",
        type=int,
        metavar="N",
        help="requests for text that a client (a key, or an address where there are no keys) may make per minute; "
        "default: no limit; a file with several keys can set it for each",
    )


def access_of(arguments: argparse.Namespace) -> Access:
    """Who may use the server, according to the options.

    Raises:
        ConfigError: an option or the key file is not valid, or other machines could use the server without a key.
    """
    keys = read_keys(arguments.api_key_file)
    _check_listening(arguments.host, keys, arguments.no_key)
    most = arguments.requests_per_minute
    if most is not None and most < 1:
        raise ConfigError(f"--requests-per-minute {most}: expected 1 or more")
    hosts = hosts_for(arguments.host, arguments.allowed_host, keys is not None)
    return Access(keys, hosts, networks_of(arguments.trusted_proxy), most)


def _check_listening(host: str, keys: Keys | None, no_key: bool) -> None:
    """Refuses to listen on other interfaces than loopback without a key, unless ``no_key`` allows it.

    Raises:
        ConfigError: the host is not a loopback address, there is no key, and ``no_key`` is False.
    """
    if host not in LOOPBACK and keys is None and not no_key:
        raise ConfigError(
            f"--host {host}: other machines could use this server without a key; set {VARIABLE} or give a key "
            "file (--api-key-file, or --login for the app), or pass --no-key to allow it"
        )
