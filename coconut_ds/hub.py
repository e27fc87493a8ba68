"""Loading by name: local folders and the local cache first, the hub only when it can be reached.

The hub's client retries an unreachable host for most of a minute and prints each try; a user without a network should
get one line at once instead.
"""

import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar
from urllib.parse import urlsplit

from huggingface_hub import constants
from safetensors import SafetensorError

from coconut_ds.errors import ModelError

Loaded = TypeVar("Loaded")
PROBE_TIMEOUT_S = 3.0
FAULTS = (OSError, ValueError, KeyError, ImportError, RuntimeError, SafetensorError)
"""What loading code raises for files that are not there, broken, or need a package that is not."""


def load_by_name(load: Callable[..., Loaded], name: str, setting: str, advice: str) -> Loaded:
    """``load(name, local_files_only=...)``.

    Args:
        load: a ``from_pretrained``.
        name: local folder or hub name.
        setting: the configuration key the name came from, for the message.
        advice: what to set instead.

    Raises:
        ModelError: it is in no folder, not cached and not to be fetched.
    """
    try:
        return load(name, local_files_only=True)
    except FAULTS as error:
        if Path(name).is_dir():
            raise ModelError(
                f"{setting}={name}: this folder cannot be loaded ({_first_line(error)}); {advice}"
            ) from error
        if not hub_reachable():
            raise ModelError(
                f"{setting}={name}: no such folder, not in the local cache, and the hub cannot be reached; {advice}"
            ) from error
    try:
        return load(name)
    except FAULTS as error:
        raise ModelError(f"{setting}={name}: the hub did not give it ({_first_line(error)}); {advice}") from error


def hub_reachable() -> bool:
    """Whether the hub's host accepts a connection. Behind a proxy the answer is left to the client."""
    if constants.HF_HUB_OFFLINE:
        return False
    if os.environ.get("HTTPS_PROXY") or os.environ.get("https_proxy"):
        return True
    address = urlsplit(constants.ENDPOINT)
    try:
        socket.create_connection((address.hostname, address.port or 443), timeout=PROBE_TIMEOUT_S).close()
    except OSError:
        return False
    return True


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
