"""Work that would hold up the event loop runs here: on threads of its own, a few pieces at a time.

The event loop answers everybody, ``/health`` included, so it must not read a large body, write a large answer or encode
a long prompt itself. More threads would not finish this work earlier, since Python runs one of them at a time.
"""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")
THREADS = 2
_threads = ThreadPoolExecutor(THREADS, thread_name_prefix="aside")


async def aside(function: Callable[Arguments, Result], *arguments: Arguments.args) -> Result:  # type: ignore[valid-type]
    """Calls a function on one of the threads, as soon as one is free, and returns its result."""
    return await asyncio.get_running_loop().run_in_executor(_threads, function, *arguments)
