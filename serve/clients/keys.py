"""API keys: how they are read, and which client each of them belongs to.

A key file holds either one key, or several, each as a JSON object on a line of its own::

    {"name": "alice", "key": "the key that Alice sends", "requests_per_minute": 60}
    {"name": "bob", "sha256": "the SHA-256 of Bob's key, in hexadecimal digits", "max_waiting": 16}

Empty lines and lines that begin with ``#`` are ignored. Only digests of the keys are kept in memory.
"""

import hashlib
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from coconut_ds.errors import ConfigError
from coconut_ds.strict_json import parse_json
from serve.clients.client import Client

VARIABLE = "COCONUT_API_KEY"
"""The environment variable that holds the key if no file is given."""
DEFAULT_NAME = "default"
"""Name of the only key, if it is given without a name."""
MAX_CHARACTERS = 1024
NAME = re.compile(r"[A-Za-z0-9_.@-]{1,64}")
DIGEST = re.compile(r"[0-9a-fA-F]{64}")
FIELDS: dict[str, type] = {"name": str, "key": str, "sha256": str, "max_waiting": int, "requests_per_minute": int}
"""Fields of a key in a file with several, and their types."""


class Keys:
    """The keys that open the server, and the client of each."""

    def __init__(self, clients: Mapping[bytes, Client]) -> None:
        """``clients``: by SHA-256 of the key."""
        self._clients = dict(clients)

    @classmethod
    def single(cls, key: str) -> "Keys":
        """One key without limits of its own."""
        return cls({hashlib.sha256(key.encode()).digest(): Client(f"key:{DEFAULT_NAME}")})

    def client_of(self, given: bytes) -> Client | None:
        """The client whose key this is; None if it is no key.

        The digest is looked up, so the time that this takes tells nothing about the keys.
        """
        return self._clients.get(hashlib.sha256(given).digest())

    def __len__(self) -> int:
        return len(self._clients)


def read_keys(file: Path | None) -> Keys | None:
    """Reads the keys from a file, or one key from the environment if ``file`` is None.

    Returns:
        None if there is no file, and the variable is not set.

    Raises:
        ConfigError: the file cannot be read, or there is no usable key in the file or the variable.
    """
    if file is None:
        value = os.environ.get(VARIABLE)
        return None if value is None else Keys.single(_checked(value.strip(), VARIABLE))
    where = f"key file {file}"
    try:
        text = file.read_text(encoding="utf-8-sig")
    except (OSError, ValueError) as error:
        raise ConfigError(f"{where}: cannot be read ({error})") from error
    lines = [(number, line.strip()) for number, line in enumerate(text.splitlines(), start=1)]
    written = [(number, line) for number, line in lines if line and not line.startswith("#")]
    if written and written[0][1].startswith("{"):
        return _several(written, where)
    if lines and not written:
        raise ConfigError(f"{where}: has no key, only empty lines and comments; expected the API key or password")
    if len(written) > 1:
        raise ConfigError(
            f"{where}: has {len(written)} lines that are not comments; expected one key, or several as one JSON object "
            'per line: {"name": "alice", "key": "…"}'
        )
    return Keys.single(_checked(written[0][1] if written else "", where))


def _several(lines: list[tuple[int, str]], where: str) -> Keys:
    """The keys of a file with several.

    Raises:
        ConfigError: a line is not valid, or two lines have the same name or key.
    """
    clients: dict[bytes, Client] = {}
    line_of: dict[bytes | str, int] = {}
    for number, line in lines:
        digest, client = _parsed(line, f"{where}, line {number}")
        for what, value in (("name", client.name), ("key", digest)):
            if value in line_of:
                raise ConfigError(f"{where}, line {number}: has the same {what} as line {line_of[value]}")
            line_of[value] = number
        clients[digest] = client
    return Keys(clients)


def _parsed(line: str, where: str) -> tuple[bytes, Client]:
    """The digest and the client of one line.

    Raises:
        ConfigError: the line is not a JSON object with the fields of ``FIELDS``.
    """
    try:
        values = parse_json(line)
    except ValueError as error:
        raise ConfigError(f"{where}: is not valid JSON ({error}); expected an object such as {_EXAMPLE}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{where}: expected a JSON object such as {_EXAMPLE}")
    for name, value in values.items():
        kind = FIELDS.get(name)
        if kind is None:
            raise ConfigError(f"{where}: the field {name!r} is unknown; expected {', '.join(FIELDS)}")
        # Not ``isinstance``: true is an int to Python.
        if type(value) is not kind or (isinstance(value, int) and value < 1):
            expected = "a whole number from 1" if kind is int else "a text"
            raise ConfigError(f"{where}: {name} is {_shown(name, value)}; expected {expected}")
    if not NAME.fullmatch(values.get("name", "")):
        raise ConfigError(f"{where}: expected a name of 1 to 64 letters, digits and any of _ . @ -")
    if ("key" in values) == ("sha256" in values):
        raise ConfigError(f"{where}: expected either key or sha256, and not both")
    if "key" in values:
        digest = hashlib.sha256(_checked(values["key"], where).encode()).digest()
    elif DIGEST.fullmatch(values["sha256"]):
        digest = bytes.fromhex(values["sha256"])
    else:
        raise ConfigError(f"{where}: sha256 is not 64 hexadecimal digits; printf %s KEY | sha256sum prints it")
    client = Client(f"key:{values['name']}", values.get("max_waiting"), values.get("requests_per_minute"))
    return digest, client


def _checked(key: str, where: str) -> str:
    """The key, if clients can send it.

    Raises:
        ConfigError: it is empty, too long, or has characters that no client sends.
    """
    if not key:
        raise ConfigError(f"{where}: is empty; expected the API key or password")
    if key != key.strip():
        raise ConfigError(f"{where}: the key begins or ends with a space, which clients do not send; remove it")
    if len(key) > MAX_CHARACTERS:
        raise ConfigError(f"{where}: the key has {len(key)} characters; expected at most {MAX_CHARACTERS}")
    strange = next((one for one in key if not one.isprintable()), None)
    if strange is not None:
        raise ConfigError(
            f"{where}: the key contains U+{ord(strange):04X}, a character that is not printable; expected one line of "
            "text without tabs and control characters"
        )
    return key


def _shown(name: str, value: Any) -> str:
    """A value in an error message, but never a key."""
    return f"of type {type(value).__name__}" if name in ("key", "sha256") else json.dumps(value)


_EXAMPLE = '{"name": "alice", "key": "…"}'
