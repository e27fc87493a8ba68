"""What a person sees of a run: a bar on a terminal, plain lines elsewhere, only on rank 0."""

import sys

from tqdm import tqdm


class ProgressBar:
    """Lines and one bar. On ranks other than 0 it is silent."""

    def __init__(self, is_first: bool) -> None:
        self._is_first = is_first
        self._bar: tqdm | None = None

    def line(self, text: str) -> None:
        """A line of its own, above the bar."""
        if self._is_first:
            tqdm.write(text, file=sys.stdout)
            sys.stdout.flush()

    def start(self, total: int, done: int = 0) -> None:
        """A bar over ``total`` updates, ``done`` of them by an earlier launch, unless there is one.

        It is not drawn when standard error is no terminal.
        """
        if self._bar is None:
            self._bar = tqdm(
                total=total,
                initial=done,
                unit="update",
                disable=None if self._is_first else True,
                dynamic_ncols=True,
            )

    def update(self, stage: int, loss: float, tokens_per_s: float) -> None:
        """One update is done."""
        if self._bar is not None:
            self._bar.set_postfix_str(f"stage {stage}, loss {loss:.4f}, {tokens_per_s:,.0f} tokens/s", refresh=False)
            self._bar.update()

    def close(self) -> None:
        """The bar goes."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None
