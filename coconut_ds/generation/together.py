"""The thoughts of one request that are computed all at once, in several passes (``methods.parallel``).

Shapes:
    n  thoughts
    D  hidden size
"""

from collections.abc import Callable

import torch
from torch import Tensor

from coconut_ds.methods.parallel import Parallel


class Together:
    """The inputs of the next pass over all n thoughts, and what is known of the thoughts."""

    inputs: Tensor
    """[n, D] input embeddings of the next pass, or of the last one once all have been made; ``begin`` makes the first
    ones."""

    def __init__(self, how: Parallel, state: Tensor, fed: Tensor, count: int, edit: Callable[[Tensor], Tensor]) -> None:
        """
        Args:
            how: the way to compute them.
            state: [D] the state before the first thought.
            fed: [D] what the feed makes of it; the same tensor without a feed.
            count: n.
            edit: returns the inputs [n, D] to use in place of those of a pass.
        """
        self._how, self._edit, self.count = how, edit, count
        self._state, self._fed = state.unsqueeze(0).clone(), fed.unsqueeze(0).clone()
        self._has_feed = fed is not state
        self.num_left = how.num_passes(count)
        """Number of passes that are still to be made."""
        self._marker: Tensor | None = None
        self._thoughts: Tensor | None = None

    def begin(self, marker: Tensor) -> None:
        """Makes the inputs of the first pass; does nothing after it.

        ``marker`` [n, D] is the input embedding of the thought marker, n times.
        """
        if self._marker is not None:
            return
        self._marker = marker
        self.inputs = self._edit(marker if self._how.kind == "looped" else torch.cat([self._fed, marker[1:]]))
        if self._how.kind == "jacobi" and self._has_feed:
            self._thoughts = torch.cat([self._state, marker[1:]])

    @property
    def thoughts(self) -> Tensor:
        """[n, D] the thoughts, which the head decodes.

        ``jacobi``: without a feed they are ``inputs``; with one, the states that the feed made them of. ``looped``: the
        states after the last pass; the input of a thought is made of its own position's state, but as in other ways of
        thinking, thought i is the state of the position before it.
        """
        return self.inputs if self._thoughts is None else self._thoughts

    def read(self, states: Tensor, fed: Tensor) -> None:
        """Takes the states [n, D] of a pass, and what the feed makes of them, as the beginning of the next."""
        assert self._marker is not None
        self.num_left -= 1
        shifted = torch.cat([self._state, states[:-1]])
        if self._how.kind == "looped":
            self._thoughts = shifted
            if self.num_left:
                self.inputs = self._edit(self._marker + fed)
        elif self.num_left:
            self.inputs = self._edit(torch.cat([self._fed, fed[:-1]]))
            if self._has_feed:
                self._thoughts = shifted
