"""Many layouts in a few arrays, so that a batch of them is planned and collated without a loop over tokens.

Imports numpy; the other modules of this package import nothing but Python's own library.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain

import numpy as np
from numpy.typing import NDArray

from coconut_ds.methods.layout import Layout
from coconut_ds.methods.lazy_sequence import LazySequence

Integers = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Layouts(LazySequence[Layout]):
    """B sequences with N tokens in total, one after the other. As a sequence, it holds B values of ``Layout``."""

    input_ids: Integers
    """[N] token ids."""
    labels: Integers
    """[N] labels: a position's own token, or ``IGNORE``."""
    starts: Integers
    """[B + 1] where each sequence begins; the last value is N."""
    first_thought: Integers
    """[B] position of the first thought within its sequence, or the length of the sequence if it has none."""
    num_thoughts: Integers
    """[B] number of thoughts."""
    num_targets: Integers
    """[B] number of positions with loss."""
    answer_start: Integers
    """[B] position of the answer's first token within its sequence, or -1 (``Layout.answer_start``)."""

    @classmethod
    def of(cls, layouts: Sequence[Layout]) -> "Layouts":
        """The same layouts as arrays; returns the argument if it is a ``Layouts`` already."""
        if isinstance(layouts, cls):
            return layouts
        starts = np.cumsum([0, *map(len, layouts)], dtype=np.int64)
        return cls(
            np.fromiter(chain.from_iterable(layout.input_ids for layout in layouts), np.int64, starts[-1]),
            np.fromiter(chain.from_iterable(layout.labels for layout in layouts), np.int64, starts[-1]),
            starts,
            np.array([layout.first_thought for layout in layouts], np.int64),
            np.array([layout.num_thoughts for layout in layouts], np.int64),
            np.array([layout.num_targets for layout in layouts], np.int64),
            np.array([layout.answer_start for layout in layouts], np.int64),
        )

    @cached_property
    def lengths(self) -> Integers:
        """[B] number of tokens of each sequence."""
        return np.diff(self.starts)

    def take(self, rows: Integers) -> "Layouts":
        """The sequences with these indices, in this order."""
        lengths = self.lengths[rows]
        starts = np.concatenate([[0], np.cumsum(lengths)])
        tokens = spans(self.starts[rows], lengths)
        return Layouts(
            self.input_ids[tokens],
            self.labels[tokens],
            starts,
            self.first_thought[rows],
            self.num_thoughts[rows],
            self.num_targets[rows],
            self.answer_start[rows],
        )

    def __len__(self) -> int:
        return len(self.num_thoughts)

    def _item(self, index: int) -> Layout:
        start, end = self.starts[index : index + 2].tolist()
        ids, labels = self.input_ids[start:end].tolist(), self.labels[start:end].tolist()
        numbers = (int(each[index]) for each in (self.first_thought, self.num_thoughts, self.answer_start))
        return Layout(ids, labels, *numbers)


def spans(starts: Integers, lengths: Integers) -> Integers:
    """The indices of several spans, one after the other: starts[0], starts[0] + 1, …, starts[1], …"""
    ends = np.cumsum(lengths)
    total = int(ends[-1]) if len(ends) else 0
    return np.repeat(starts - (ends - lengths), lengths) + np.arange(total)
