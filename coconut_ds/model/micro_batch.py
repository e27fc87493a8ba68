"""A micro batch before it is collated: the sequences of one rank in one forward pass, and their weights in the loss."""

from collections.abc import Sequence
from dataclasses import dataclass

from coconut_ds.methods.layouts import Integers, Layouts


@dataclass(frozen=True)
class MicroBatch:
    """The B sequences of one rank in one forward pass.

    A rank with no problems left gets a copy of another rank's problem with weight 0, so that all ranks make the same
    passes.
    """

    layouts: Layouts
    weights: Sequence[float]
    """For each row, the weight that each of its targets has in the loss of the update."""
    num_thoughts: int
    """Maximum number of thoughts in this micro step over all ranks: every rank makes this many one-position passes."""
    num_targets: int
    """Maximum number of targets in this micro step over all ranks: every rank computes logits in the same number of
    parts."""
    rows: Integers
    """[B] index of each row in the global batch."""
    share: float
    """Weight of each row in a mean over the rows of the global batch; 0 for copies."""
