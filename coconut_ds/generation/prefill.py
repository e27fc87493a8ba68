"""Which prompts the next pass encodes, and how many of their positions.

Offline, every prompt is encoded before the next step, in passes that are as large as the memory allows: that is fastest
for all requests together. A server also has streams, whose next tokens would wait for all these prompts. There, the
work between two steps is limited to some positions, and longer prompts are encoded in several pieces, with a step of
the other requests after each.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch

from coconut_ds.generation.rows import Row
from coconut_ds.generation.slot_table import SlotTable
from coconut_ds.model.latent_loop import LatentLoop

EACH_ROW = 0.2
"""Share of a piece that may be encoded in addition between two steps, for each request beyond ``FEW`` that the engine
has. A step over more requests takes longer; this takes about three times as long as a request adds to it. Requests that
wait count too: the more of them wait, the more it costs to take steps with few requests."""
FEW = 4
"""With up to this many requests the next tokens are waited for, and the rate counts less."""
ENOUGH = 0.75
"""No further pass comes before the next step once this part of the positions that may be computed has been, because
passes over few positions take almost as long as passes over some more."""


def default_piece(loop: LatentLoop) -> int:
    """The fewest positions with which a loaded server loses almost nothing of its rate (``benchmarks/pieces.py``).

    Measured on a CPU with GPT-2's shape (six layers, 512 wide); on a GPU, where the ratio of arithmetic to memory is
    larger, it is an estimate.
    """
    if loop.device.type != "cpu":
        return 1024
    return 96 if loop.model.dtype == torch.float32 else 256


class Encoding(NamedTuple):
    """One pass over prompts."""

    slots: list[int]
    end: int | None
    """The pass ends before this position of the prompt in the only slot; None: it reaches the ends of all prompts."""


class Prefill:
    """Divides the work between steps and other passes."""

    def __init__(self, table: SlotTable, piece: int | None, widened: Callable[[int], int], width: int) -> None:
        """
        Args:
            table: the requests.
            piece: the largest number of positions to encode between two steps of one request; None: no limit.
            widened: the width of a pass over some positions.
            width: the model's hidden size.
        """
        self._table, self._piece, self._widened, self._width = table, piece, widened, width
        self._spent = 0.0
        """Positions since the last step, while there were requests that waited for the next."""
        self._took_oldest = False
        self._was_encoding = False
        """Whether the last pass that is not a step encoded prompts."""

    @property
    def encodes_first(self) -> bool:
        """Whether prompts come before thoughts that are computed together: without pieces always, else in turns."""
        return self._piece is None or not self._was_encoding

    @property
    def may_work(self) -> bool:
        """Whether another pass may come before the next step."""
        return not self._table.stepping or self._spent < ENOUGH * self._limit

    def admitted(self, most: int) -> float:
        """The largest number of positions that should wait in slots to be encoded (``SlotTable.admit``).

        Requests that wait in the queue instead take no part in the steps over the slots.
        """
        if self._piece is None:
            return math.inf
        return 2 * (min(most, self._limit) if self._table.stepping else most)

    def note(self, positions: int, start: int, is_encoding: bool) -> None:
        """Counts a pass over positions from ``start`` on, before the table knows of it."""
        self._spent += positions * self._cost(start) if self._table.stepping else 0
        self._was_encoding = is_encoding

    def note_step(self) -> None:
        """Counts a step."""
        self._spent = 0.0

    def next(self, most: int) -> Encoding:
        """The next pass: over several prompts of which nothing is cached, or over (a part of) the rest of one.

        Args:
            most: the largest number of positions in a pass over several prompts, padding included.
        """
        table = self._table
        if table.stepping and self._piece is not None:
            most = min(most, int(self._limit - self._spent))
        first = self._first(table)
        row = table[first]
        if row.length:
            return Encoding([first], self._end(row, most))
        # Shortest first: prompts of similar length share a pass, which keeps the padding small.
        fresh = sorted(
            (self._widened(len(table[slot].prefix)), slot) for slot in table.to_encode if not table[slot].length
        )
        if self._piece is not None:
            place = next(place for place, (_, slot) in enumerate(fresh) if slot == first)
            fresh = fresh[place:]
        slots = [slot for i, (width, slot) in enumerate(fresh) if i == 0 or width * (i + 1) <= most]
        return Encoding(slots, self._end(table[slots[0]], most) if len(slots) == 1 else None)

    def _first(self, table: SlotTable) -> int:
        """The slot whose prompt the next pass begins with.

        With pieces in turns the oldest prompt, so that each is encoded at some time, and the one that is done soonest,
        so that a short prompt does not wait for all of a long one.
        """
        if self._piece is None:
            return table.to_encode[0]
        self._took_oldest = not self._took_oldest
        if self._took_oldest:
            return table.to_encode[0]
        return min(table.to_encode, key=lambda slot: len(table[slot].prefix) - table[slot].length)

    @property
    def _limit(self) -> float:
        """Positions that may be encoded between two steps."""
        if self._piece is None:
            return math.inf
        many = self._table.num_running + len(self._table.waiting) - FEW
        return self._piece * (1 + EACH_ROW * max(0, many))

    def _cost(self, start: int) -> float:
        """How many positions at a prompt's beginning take as long as one after ``start`` others.

        In each layer, a position is multiplied with about 12 D² weights and twice with D numbers of each position
        before it.
        """
        return 1 + start / (6 * self._width)

    def _end(self, row: Row, most: int) -> int | None:
        """Where the next piece of a prompt ends; None: at the prompt's end. Pieces that remain have about equal sizes.

        Prompts with noise on values are encoded in one pass.
        """
        rest, size = len(row.prefix) - row.length, max(1, int(most / self._cost(row.length)))
        if self._piece is None or rest <= size or row.request.has_noisy_values:
            return None
        return row.length + math.ceil(rest / math.ceil(rest / size))
