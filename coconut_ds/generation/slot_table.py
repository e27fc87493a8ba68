"""Who holds which slot, who waits for one, and what prompts in the cache have in common with those to come."""

import itertools
from collections import deque

from coconut_ds.generation.rows import Row
from coconut_ds.generation.slots import SlotCache

MIN_SHARED = 16
"""Positions that two prompts must have in common before they are copied; and half of the longer one's."""
MAX_SCRIPTED = 4
"""Tokens of a prompt that one-position passes take along; more are encoded in a pass of their own."""


class SlotTable:
    """Rows by slot, and the queue before them."""

    def __init__(self, cache: SlotCache, slots: int) -> None:
        self._cache = cache
        self._rows: list[Row | None] = [None] * slots
        self._left: list[list[int]] = [[] for _ in range(slots)]
        """The tokens whose states the last row of each slot left behind."""
        self.waiting: deque[Row] = deque()
        self.to_encode: list[int] = []
        """Slots whose prompts need a pass of their own."""
        self.num_shared = 0
        """Positions that were copied, not encoded, so far."""

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, slot: int) -> Row:
        row = self._rows[slot]
        assert row is not None
        return row

    @property
    def running(self) -> list[int]:
        """Slots that are held."""
        return [slot for slot, row in enumerate(self._rows) if row is not None]

    def cancel(self, ticket: int) -> bool:
        """Forgets a row; whether it was there."""
        for row in self.waiting:
            if row.ticket == ticket:
                self.waiting.remove(row)
                return True
        for slot in self.running:
            if self[slot].ticket == ticket:
                self.free(slot)
                return True
        return False

    def free(self, slot: int) -> Row:
        """Takes a row out of its slot; what it encoded can still be copied."""
        row = self[slot]
        self._left[slot] = row.prefix[: row.length]
        self._rows[slot] = None
        if slot in self.to_encode:
            self.to_encode.remove(slot)
        return row

    def admit(self) -> None:
        """Gives free slots to the first that wait. Who begins like one that is yet to be encoded waits for it."""
        free = [slot for slot, row in enumerate(self._rows) if row is None]
        if not free or not self.waiting:
            return
        first = list(itertools.islice(self.waiting, len(free)))
        coming = [self[slot].prefix for slot in self.to_encode]
        for row in first:
            source, shared = self._source(row.prefix)
            if max((num_shared(row.prefix, prefix) for prefix in coming), default=0) > shared:
                continue
            slot = source if source in free else free[0]
            free.remove(slot)
            self.waiting.remove(row)
            if self._enter(row, slot, source, shared):
                coming.append(row.prefix)

    def close_gaps(self) -> list[tuple[int, int]]:
        """Moves the last rows into free slots, so that none is free before a row; returns (from, to) of each."""
        running = self.running
        gaps = [slot for slot in range(len(running)) if self._rows[slot] is None]
        moves = list(zip(running[len(running) - len(gaps) :], gaps, strict=True))
        for source, target in moves:
            row = self[source]
            self._cache.copy_row(source, target, row.length)
            self._left[source] = row.prefix[: row.length]
            self._rows[target], self._rows[source] = row, None
        return moves

    def _source(self, prefix: list[int]) -> tuple[int, int]:
        """The slot that has most of a prefix, and how many positions of it; a free one rather than another."""
        best = (-1, 0)
        for slot, row in enumerate(self._rows):
            there = self._left[slot] if row is None else row.prefix[: row.length]
            shared = num_shared(prefix, there)
            if shared > best[1] or (shared and shared == best[1] and row is None):
                best = slot, shared
        return best

    def _enter(self, row: Row, slot: int, source: int, shared: int) -> bool:
        """Puts a row into a slot. Returns whether its prompt must be encoded in a pass of its own."""
        row.start()
        self._rows[slot] = row
        row.length = row.num_shared = shared
        self.num_shared += shared
        if shared and source != slot:
            self._cache.copy_row(source, slot, shared)
        rest = row.prefix[shared:]
        if shared and len(rest) <= MAX_SCRIPTED:
            row.script.extendleft(reversed(rest))
            row.input = row.script.popleft()
            return False
        self.to_encode.append(slot)
        return True


def num_shared(prefix: list[int], there: list[int]) -> int:
    """Positions of ``prefix`` that need no pass where ``there`` is known. A few are not worth it."""
    # The state at the last position is not kept, so that one is always passed again.
    most = min(len(prefix) - 1, len(there))
    if most < MIN_SHARED or 2 * most < len(prefix) or prefix[:MIN_SHARED] != there[:MIN_SHARED]:
        return 0
    count = next((i for i in range(MIN_SHARED, most) if prefix[i] != there[i]), most)
    return count if 2 * count >= len(prefix) else 0
