"""Ways to compute all thoughts of a sequence at once, in several passes over their positions.

``method.thinking`` chooses one; ``sequential``, which computes one thought after another, is none of them. Let e be the
input embedding of the thought marker, and h the states of a pass after the final norm.

* ``jacobi`` (PCCoT, arXiv 2506.18582): the first thought is the state before it. The input of each other position is e
  in the first pass, and then h of the position *before* it in the previous pass.
* ``looped`` (LOTUS, arXiv 2606.31779): the input of each position is e in pass 0, and in pass r = 1 … R it is e + h of
  the *same* position in pass r - 1. What follows attends to the positions of pass R.

If thoughts go through a feed (``model.feed``), h stands for what the feed makes of the state.
"""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Parallel:
    """One of these ways, and its number of iterations."""

    kind: Literal["jacobi", "looped"]
    iterations: int | None
    """``jacobi``: number of passes, at most one for each thought. ``looped``: R; None: one for each block of thoughts,
    which are the curriculum's ``c_thought`` thoughts that replace one step."""
    block: int = 1
    """Thoughts in a block (``c_thought``)."""

    def rounds(self, num_thoughts: int) -> int:
        """R, the number of passes that feed states back (``looped``)."""
        return -(-num_thoughts // self.block) if self.iterations is None else self.iterations

    def num_passes(self, num_thoughts: int) -> int:
        """Number of passes over all ``num_thoughts`` positions; 0 if there are none."""
        if not num_thoughts:
            return 0
        if self.kind == "looped":
            return self.rounds(num_thoughts) + 1
        assert self.iterations is not None, "thinking=jacobi has a number of iterations"
        return min(self.iterations, num_thoughts)
