"""Functions that do their work in parts, so that their caller can do something else between two parts.

``in_parts`` decorates a generator function that yields after each part and returns its result. Calling the decorated
function does all the work and returns the result. ``function.parts(…)`` returns the generator instead: the server's
model thread resumes it whenever other work has had its turn. A function of this kind does the work of another one part
by part with ``result = yield from other.parts(…)``.
"""

import functools
from collections.abc import Callable, Generator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any, Generic, ParamSpec, TypeVar

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")
Parts = Generator[Future[Any] | None, None, Result]
"""Work that yields after each part; its return value is the result. If it yields a future, the next part needs that."""
_threads = ThreadPoolExecutor(2, thread_name_prefix="part")
"""Shared by all work: OpenMP keeps a pool of threads for each thread that has ever computed."""


class InParts(Generic[Arguments, Result]):
    """A function whose work can also be done part by part."""

    def __init__(self, function: Callable[Arguments, Parts[Result]]) -> None:
        self.parts = function
        """Takes the function's arguments and returns its work, which the caller resumes part by part."""
        functools.update_wrapper(self, function)

    def __call__(self, *args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        """Does all parts and returns the result."""
        return all_parts(self.parts(*args, **kwargs))


def in_parts(function: Callable[Arguments, Parts[Result]]) -> InParts[Arguments, Result]:
    """Decorates a generator function that yields after each part of its work."""
    return InParts(function)


def all_parts(parts: Parts[Result]) -> Result:
    """Does all parts of some work and returns its result."""
    while True:
        try:
            needed = next(parts)
        except StopIteration as ended:
            result: Result = ended.value
            return result
        if needed is not None:
            wait([needed])


def on_another_thread(function: Callable[[], Result]) -> Parts[Result]:
    """A part that runs on another thread once one is free: a function that may take long and does not need the model.

    It must not wait for another function of this kind. If it has not begun when the work is closed, it never runs.
    """
    future = _threads.submit(function)
    try:
        yield future
    finally:
        future.cancel()
    return future.result()
