"""Tokenized problems as flat arrays of ids, without a Python object for each token.

A problem consists of *pieces*: the question, each step, the answer. ``methods.templates`` makes sequences of the pieces
of a batch of problems without a loop over tokens.
"""

from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, chain, pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from coconut_ds.methods.base import Ids, TokenizedProblem
from coconut_ds.methods.lazy_sequence import LazySequence
from coconut_ds.methods.templates import Pieces


class TokenArrays(NamedTuple):
    """The pieces of some problems.

    Problem r has the pieces rows[r] to rows[r + 1] - 1; piece p has the ids pieces[p] to pieces[p + 1] - 1.
    """

    rows: NDArray[np.int32]
    pieces: NDArray[np.int32]
    ids: NDArray[np.int32]


Shares = Mapping[int, float]
"""Token ids, each with its share; the shares sum to 1. Empty: there is no such token."""


@dataclass(frozen=True)
class Hop:
    """The tokens that name the nodes at one hop of a problem (``hops.py``)."""

    path: Shares
    """The token of the solution's step; empty if the solution is not known."""
    frontier: Shares
    """The tokens of all nodes at this distance from the root; those of ``path`` if the problem has no graph."""


def arrays_of(problems: Sequence[TokenizedProblem]) -> TokenArrays:
    """The pieces of ``problems``, copied."""
    pieces = [piece for each in problems for piece in (each.question, *each.steps, each.answer)]
    bounds = np.cumsum([0, *map(len, pieces)], dtype=np.int32)
    rows = np.cumsum([0, *(len(each.steps) + 2 for each in problems)], dtype=np.int32)
    return TokenArrays(rows, bounds, np.fromiter(chain.from_iterable(pieces), np.int32, bounds[-1]))


class ProblemArrays(LazySequence[TokenizedProblem]):
    """Tokenized problems in one or several ``TokenArrays``; a problem's lists are made when it is accessed."""

    def __init__(
        self, parts: Sequence[TokenArrays], cue: Ids, hops: Callable[[int], Sequence[Hop]] | None = None
    ) -> None:
        """
        Args:
            parts: the problems, in order.
            cue: ``TokenizedProblem.cue``, which all of them share.
            hops: returns the hops of the problem with an index; None: see ``hops``.
        """
        self._parts, self._cue, self._hops = parts, cue, hops
        self._starts = list(accumulate((len(part.rows) - 1 for part in parts), initial=0))

    def __len__(self) -> int:
        return self._starts[-1]

    def with_hops(self, hops: Callable[[int], Sequence[Hop]]) -> "ProblemArrays":
        """The same problems; ``hops`` returns the hops of the one with an index."""
        return ProblemArrays(self._parts, self._cue, hops)

    def hops(self, index: int) -> Sequence[Hop]:
        """The hops of a problem. Where only its tokens are known, as in a plan of memory, the first token of each
        step."""
        if self._hops is not None:
            return self._hops(index)
        firsts = [dict.fromkeys(step[:1], 1.0) for step in self[index].steps]
        return [Hop(first, first) for first in firsts]

    def pieces(self, indices: Sequence[int]) -> Pieces:
        """The pieces of the problems with these indices (at least one), in this order, copied."""
        bounds, ids = [], []
        for index in indices:
            own, part = self._located(index)
            bounds.append(own)
            ids.append(part.ids[own[0] : own[-1]])
        counts, lengths = np.array([len(own) for own in bounds]), np.array([len(own) for own in ids])
        # Bounds are positions in a part; they become positions among the ids of these problems.
        moved = np.cumsum(lengths) - lengths - np.array([own[0] for own in bounds])
        return Pieces(
            np.concatenate(ids).astype(np.int64),
            np.concatenate(bounds) + np.repeat(moved, counts),
            np.concatenate([[0], np.cumsum(counts)]),
            self._cue,
        )

    def _item(self, index: int) -> TokenizedProblem:
        bounds, part = self._located(index)
        places = bounds.tolist()
        start = places[0]
        # Read the ids once; slicing plain lists is faster than slicing arrays.
        flat = part.ids[start : places[-1]].tolist()
        question, *steps, answer = [flat[a - start : b - start] for a, b in pairwise(places)]
        return TokenizedProblem(question, tuple(steps), answer, self._cue)

    def _located(self, index: int) -> tuple[NDArray[np.int32], TokenArrays]:
        """Where the pieces of a problem begin, and the last one ends, in ``ids`` of the part that is returned too."""
        number = bisect_right(self._starts, index) - 1
        part, row = self._parts[number], index - self._starts[number]
        return part.pieces[part.rows[row] : part.rows[row + 1] + 1], part
