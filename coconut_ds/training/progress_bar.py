"""Progress output of a run, on rank 0 only: plain lines and, on a terminal, a progress bar.

Where standard error is not a terminal, lines about single updates take the place of the bar.
"""

import os
import sys
import time
from collections.abc import Callable, Mapping

import torch
from tqdm import tqdm

from coconut_ds.distributed.launcher import process_file

QUIET_S = 30.0
"""Least seconds between two lines about updates in a log."""
ESTIMATE_AFTER = 10
"""Updates after which the duration of a run is estimated. The first ones are slower than the rest."""


def peak_memory(device: torch.device) -> int | None:
    """The most memory that this process has used so far, in bytes: of a CUDA device, otherwise of the host.

    Returns None where the system does not report it.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    for line in process_file(os.getpid(), "status").splitlines():
        if line.startswith(b"VmHWM:"):
            return int(line.split()[1]) * 1024
    return None


class ProgressBar:
    """Prints lines and shows one bar. On ranks other than 0 it prints nothing.

    Args:
        is_first: whether this is rank 0.
        log_every: least number of updates between two lines about updates in a log; None: no such lines.
        estimates: whether to print, after the first updates, how long the others will take.
        memory: the memory in use, in bytes; None if it is not known.
        clock: current time in seconds.
    """

    def __init__(
        self,
        is_first: bool,
        log_every: int | None = None,
        estimates: bool = False,
        memory: Callable[[], int | None] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._is_first, self._log_every, self._estimates = is_first, log_every, estimates
        self._memory, self._clock = memory, clock
        self._bar: tqdm | None = None
        self._total = self._done = self._logged = 0
        # The number of updates done when the clock was started, and when that was. The first update is not timed.
        self._timed_from: tuple[int, float] | None = None
        self._logged_at = 0.0

    def line(self, text: str) -> None:
        """Prints a line above the bar."""
        if self._is_first:
            tqdm.write(text, file=sys.stdout)
            sys.stdout.flush()

    def start(self, total: int, done: int = 0) -> None:
        """Shows a bar over ``total`` updates, ``done`` of which were completed earlier.

        A bar that exists is kept, with the new total: epochs can have different numbers of updates (``data.schedule``).
        It is not drawn unless standard error is a terminal.
        """
        if self._bar is None:
            self._bar = tqdm(
                total=total,
                initial=done,
                unit="update",
                disable=None if self._is_first else True,
                dynamic_ncols=True,
            )
            self._done, self._logged, self._logged_at = done, done, self._clock()
        self._total = self._bar.total = total

    def update(self, stage: int, loss: float, tokens_per_s: float, parts: Mapping[str, float]) -> None:
        """Advances the bar by one update. ``parts``: the parts of the loss and other numbers to show, by name."""
        if self._bar is None:
            return
        split = f" ({', '.join(f'{name} {value:.4f}' for name, value in parts.items())})" if parts else ""
        text = f"stage {stage}, loss {loss:.4f}{split}, {tokens_per_s:,.0f} tokens/s"
        self._bar.set_postfix_str(text, refresh=False)
        self._bar.update()
        self._done += 1
        if self._is_first:
            now = self._clock()
            self._estimate(now)
            if self._bar.disable:
                self._log(text, now)

    def close(self) -> None:
        """Removes the bar."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def _estimate(self, now: float) -> None:
        if self._timed_from is None:
            self._timed_from = self._done, now
        elif self._estimates and self._done - self._timed_from[0] >= ESTIMATE_AFTER:
            self._estimates = False
            self.line(
                f"the remaining {self._total - self._done:,} updates will take about {self._time_left(now)} "
                "(hours:minutes:seconds), without validation"
            )

    def _log(self, text: str, now: float) -> None:
        """Prints a line about this update if enough updates and enough time have passed since the last one."""
        if self._log_every is None or self._done - self._logged < self._log_every or now - self._logged_at < QUIET_S:
            return
        self._logged, self._logged_at = self._done, now
        bytes_used = self._memory()
        memory = "" if bytes_used is None else f", memory {bytes_used / 2**30:.2f} GiB"
        self.line(f"update {self._done:,}/{self._total:,}, {text}, time left {self._time_left(now)}{memory}")

    def _time_left(self, now: float) -> str:
        """Time that the remaining updates will take, validation between them included, as h:mm:ss."""
        assert self._timed_from is not None
        since, began = self._timed_from
        if self._done == since:
            return "unknown"
        seconds = (now - began) / (self._done - since) * (self._total - self._done)
        minutes, second = divmod(round(seconds), 60)
        return f"{minutes // 60}:{minutes % 60:02}:{second:02}"
