"""Progress output of a run, on rank 0 only: plain lines and, on a terminal, a progress bar."""

import sys
from collections.abc import Mapping

from tqdm import tqdm


class ProgressBar:
    """Prints lines and shows one bar. On ranks other than 0 it prints nothing."""

    def __init__(self, is_first: bool) -> None:
        self._is_first = is_first
        self._bar: tqdm | None = None

    def line(self, text: str) -> None:
        """Prints a line above the bar."""
        if self._is_first:
            tqdm.write(text, file=sys.stdout)
            sys.stdout.flush()

    def start(self, total: int, done: int = 0) -> None:
        """Shows a bar over ``total`` updates, ``done`` of which were completed earlier. Keeps a bar that exists.

        The bar is not drawn unless standard error is a terminal.
        """
        if self._bar is None:
            self._bar = tqdm(
                total=total,
                initial=done,
                unit="update",
                disable=None if self._is_first else True,
                dynamic_ncols=True,
            )

    def update(self, stage: int, loss: float, tokens_per_s: float, parts: Mapping[str, float]) -> None:
        """Advances the bar by one update. ``parts``: the parts of the loss and other numbers to show, by name."""
        if self._bar is not None:
            split = f" ({', '.join(f'{name} {value:.4f}' for name, value in parts.items())})" if parts else ""
            text = f"stage {stage}, loss {loss:.4f}{split}, {tokens_per_s:,.0f} tokens/s"
            self._bar.set_postfix_str(text, refresh=False)
            self._bar.update()

    def close(self) -> None:
        """Removes the bar."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None
