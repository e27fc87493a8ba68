"""Versions of the software that computes the numbers of a run."""

import platform
from functools import cache
from importlib.metadata import PackageNotFoundError, version

PACKAGES = ("coconut-ds", "torch", "transformers", "deepspeed")


@cache
def versions() -> dict[str, str]:
    """Versions of Python and of the packages, by name."""
    return {"python": platform.python_version(), **{name: _version(name) for name in PACKAGES}}


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        # A checkout that was never installed has no metadata of its own.
        return "not installed"
