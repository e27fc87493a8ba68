"""Loads models and tokenizers by name: from a local folder or the local cache if possible, else from the hub.

If the hub cannot be reached, its client retries for most of a minute and prints each attempt. So this module checks
first that it can be reached, and a user without a network gets a one-line error at once.
"""

import os
import socket
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TypeVar
from urllib.parse import urlsplit

from huggingface_hub import constants, snapshot_download
from huggingface_hub.errors import HfHubHTTPError
from safetensors import SafetensorError

from coconut_ds.errors import ModelError
from coconut_ds.files import not_downloaded

Loaded = TypeVar("Loaded")
PROBE_TIMEOUT_S = 3.0
"""Longest time to wait for the hub's host, in seconds."""
CACHED = "models--"
"""Beginning of the names of cache entries."""
HTTP_FAULT: type[Exception] = HfHubHTTPError.__bases__[0]
"""The base of all errors of the hub's HTTP client, a broken connection among them. Which client that is differs between
versions of huggingface_hub, whose own error derives from it."""
FAULTS = (OSError, ValueError, KeyError, ImportError, RuntimeError, SafetensorError, HTTP_FAULT)
"""What loading raises for files that are missing or broken, or that need a package that is not installed."""


def load_by_name(load: Callable[..., Loaded], name: str, setting: str, advice: str) -> Loaded:
    """Calls ``load(name)``, with ``local_files_only=True`` first.

    Args:
        load: a ``from_pretrained`` function.
        name: a local folder or a name on the hub.
        setting: the configuration key that the name came from, for the error message.
        advice: what to set instead, for the error message.

    Raises:
        ModelError: the folder cannot be loaded, or the name is not in the local cache and cannot be downloaded.
    """
    try:
        return load(name, local_files_only=True)
    except FAULTS as error:
        if Path(name).is_dir():
            fault = _fault_of(Path(name)) or first_line(error)
            raise ModelError(f"{setting}={name}: this folder cannot be loaded ({fault}); {advice}") from error
        if not hub_reachable():
            raise ModelError(
                f"{setting}={name}: no such folder, not in the local cache, and the hub cannot be reached; {advice}"
            ) from error
    try:
        return load(name)
    except FAULTS as error:
        raise ModelError(
            f"{setting}={name}: could not be loaded from the hub ({first_line(error)}); {advice}"
        ) from error


def local_folder(name: str, patterns: Sequence[str], setting: str, advice: str) -> Path:
    """A file or folder on this machine; any other name is that of a repository of the hub, which is downloaded.

    Args:
        name: a path, or a name such as ``ORG/NAME``.
        patterns: which files to download.
        setting: see ``load_by_name``.
        advice: see ``load_by_name``.

    Raises:
        ModelError: there is no such path, and the name is not in the local cache and cannot be downloaded.
    """
    path = Path(name)
    if path.exists():
        return path
    load = partial(snapshot_download, allow_patterns=list(patterns))
    return Path(load_by_name(load, name, setting, advice))


def hub_reachable() -> bool:
    """Whether the hub's host accepts a connection. Behind a proxy this is not tested, and assumed to be so."""
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


def _fault_of(folder: Path) -> str | None:
    """The first file of a folder that was not downloaded, and what it contains instead; None if there is none."""
    faults = ((path.name, not_downloaded(path)) for path in sorted(folder.iterdir()) if path.is_file())
    return next((f"{name} {fault}" for name, fault in faults if fault), None)


def cache_of(folder: Path) -> Path | None:
    """The cache entry ``models--ORG--NAME`` of which a folder is a snapshot; None if it is not in a cache."""
    entry = folder.parent.parent
    return entry if folder.parent.name == "snapshots" and entry.name.startswith(CACHED) else None


def cached_name(entry: Path) -> str:
    """The name on the hub, ``ORG/NAME``, of the model in a cache entry."""
    return entry.name.removeprefix(CACHED).replace("--", "/")


def short_name(path: Path) -> str:
    """The last two parts of a model's path, joined by a hyphen; for a snapshot in a cache, the model's name."""
    resolved = path.resolve()
    entry = cache_of(resolved)
    return "-".join(resolved.parts[-2:]) if entry is None else cached_name(entry).replace("/", "-")


def first_line(error: Exception) -> str:
    """The first line of an exception's message, or its type if there is no message."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
