"""Which columns of the cache a one-position pass on a CPU reads for which rows.

A pass reads all columns up to the longest row's length for all of its rows, unless the rows are divided into *spans*:
neighbouring rows that read equally many columns. Then a long row does not make the short ones read as much as itself.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import NamedTuple

SPLIT_BYTES = 1 << 19
"""Another span pays off once it saves this many bytes of keys and values in a layer: its operations take about as long
as reading them."""


class Span(NamedTuple):
    """Rows ``first`` to ``end`` (exclusive) read the first ``columns`` columns of the cache."""

    first: int
    end: int
    columns: int


def spans_of(columns: Sequence[int], num_bytes: int) -> list[Span]:
    """Divides rows, of which each needs some columns, into spans.

    Args:
        columns: number of columns that each row needs; at least 1.
        num_bytes: bytes of a row's keys and values at one column, in one layer.
    """
    spans: list[Span] = []
    for row, needed in enumerate(columns):
        if spans:
            first, end, most = spans[-1]
            # What a shared span reads in addition: for this row, or for those before it.
            added = most - needed if most >= needed else (end - first) * (needed - most)
            if added * num_bytes <= SPLIT_BYTES:
                spans[-1] = Span(first, row + 1, max(most, needed))
                continue
        spans.append(Span(row, row + 1, needed))
    return spans


_current: ContextVar[Sequence[Span] | None] = ContextVar("spans", default=None)


def current_spans() -> Sequence[Span] | None:
    """The spans of the pass that this thread makes; None: all rows read the same columns."""
    return _current.get()


@contextmanager
def reading(spans: Sequence[Span] | None) -> Iterator[None]:
    """A context in which one-position passes of this thread read ``spans``."""
    token = _current.set(spans)
    try:
        yield
    finally:
        _current.reset(token)
