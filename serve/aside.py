"""Work that would hold up the event loop runs here: on threads of its own, a few pieces at a time.

The event loop answers everybody, ``/health`` included, so it must not read a large body, write a large answer or encode
a long prompt itself. More threads would not finish this work earlier, since Python runs one of them at a time.
"""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar
from weakref import WeakSet

from serve.heap import give_back

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")
THREADS = 2
TIDY_S = 1.0
"""Seconds after which memory that such work has freed is given back to the system."""
_threads = ThreadPoolExecutor(THREADS, thread_name_prefix="aside")
_tidying: WeakSet[asyncio.AbstractEventLoop] = WeakSet()
"""Event loops that will give memory back."""


async def aside(function: Callable[Arguments, Result], *arguments: Arguments.args) -> Result:  # type: ignore[valid-type]
    """Calls a function on one of the threads, as soon as one is free, and returns its result."""
    loop = asyncio.get_running_loop()
    try:
        return await loop.run_in_executor(_threads, function, *arguments)
    finally:
        if loop not in _tidying:
            _tidying.add(loop)
            loop.call_later(TIDY_S, _tidy, loop)


def _tidy(loop: asyncio.AbstractEventLoop) -> None:
    """Gives memory back, which after large requests is more than the server needs."""
    _tidying.discard(loop)
    _threads.submit(give_back)
