"""The fixture of the cases on the strict device; ``run.py`` gives it to pytest as a plug-in."""

from collections.abc import Iterator

import pytest

import strict_device
from strict_device import Syncs


@pytest.fixture
def syncs() -> Iterator[Syncs]:
    """A test that takes it runs on the strict device."""
    with strict_device.strict() as syncs:
        yield syncs
