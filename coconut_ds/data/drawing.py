"""Draws the generated problems of a split, and shows progress where that takes long."""

import sys
import threading
import time
from collections.abc import Callable, Iterator

from tqdm import tqdm

from coconut_ds.data.problem import Problem
from coconut_ds.distributed.launcher import launched_rank

BAR_AFTER_S = 2.0
"""Seconds after which a terminal shows a bar."""
LINE_EVERY_S = 30.0
"""Seconds between two lines where standard error is not a terminal."""


NAMES = {"train": "training", "valid": "validation"}
"""The names of splits in messages, where they differ."""


def draw_all(draw: Callable[[int], Problem], count: int, split: str) -> list[Problem]:
    """The problems 0 to ``count`` - 1 of a split.

    Rank 0 shows the progress on standard error, unless a thread draws problems ahead of time while the run trains.

    Args:
        draw: returns the problem with an index.
        count: number of problems.
        split: train, valid or test.
    """
    what = f"drawing {NAMES.get(split, split)} problems"
    is_quiet = launched_rank() > 0 or threading.current_thread() is not threading.main_thread()
    if is_quiet:
        return [draw(index) for index in range(count)]
    if sys.stderr.isatty():
        bar = tqdm(range(count), what, unit=" problems", delay=BAR_AFTER_S, leave=False, dynamic_ncols=True)
        return [draw(index) for index in bar]
    return [draw(index) for index in _with_lines(what, count)]


def _with_lines(what: str, count: int) -> Iterator[int]:
    """The numbers 0 to ``count`` - 1; prints how far they are at intervals."""
    started = printed = time.monotonic()
    for index in range(count):
        now = time.monotonic()
        if now - printed >= LINE_EVERY_S:
            printed, rate = now, index / (now - started)
            left = tqdm.format_interval((count - index) / rate) if rate else "unknown"
            sys.stderr.write(f"{what}: {index:,} of {count:,}, {rate:,.0f} problems/s, time left {left}\n")
            sys.stderr.flush()
        yield index
