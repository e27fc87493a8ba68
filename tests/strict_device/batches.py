"""Micro batches for the cases on the strict device."""

from collections.abc import Sequence

from tiny_models import VOCABULARY

from coconut_ds.methods.layout import IGNORE, Layout
from coconut_ds.methods.parallel import Parallel
from coconut_ds.model.collate import Batch, collate
from strict_device.registering import device

THOUGHT = VOCABULARY - 1
SHAPES = ((10, 2, 4), (7, 2, 3), (9, 1, 6), (6, 0, 5))
"""Question tokens, thoughts and later tokens of each row: unequal prefixes, and rows with fewer thoughts or none."""


def layout_of(question: int, thoughts: int, after: int) -> Layout:
    """A sequence whose later tokens are the targets of the loss."""
    ids = [*range(3, 3 + question), *[THOUGHT] * thoughts, *range(5, 5 + after)]
    labels = [IGNORE] * (question + thoughts) + ids[question + thoughts :]
    return Layout(ids, labels, question if thoughts else len(ids), thoughts)


def batch_of(layouts: Sequence[Layout], parallel: Parallel | None = None) -> Batch:
    """One micro batch on the CPU."""
    most = max(layout.num_thoughts for layout in layouts)
    return collate(layouts, [0.1] * len(layouts), most, 0, parallel=parallel)


def mixed_batch(parallel: Parallel | None = None) -> Batch:
    """The rows of ``SHAPES``, on the CPU."""
    return batch_of([layout_of(*shape) for shape in SHAPES], parallel)


def on_device(batch: Batch) -> Batch:
    """The batch on the strict device."""
    return batch.to(device())
