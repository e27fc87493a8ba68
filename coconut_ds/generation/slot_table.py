"""Assigns requests to slots, queues the others, and finds prompts in the cache that a new prompt begins like."""

import itertools
from collections import deque

from coconut_ds.generation.rows import Row
from coconut_ds.generation.slots import SlotCache

MIN_SHARED = 16
"""Copy from another prompt only if it shares at least this many positions, and half of the new prompt's prefix."""
MAX_SCRIPTED = 4
"""If at most this many tokens of a prompt remain after copying, they join the one-position passes; otherwise they are
encoded in a separate pass."""


class SlotTable:
    """The rows that hold slots, and the queue of rows that wait for one."""

    def __init__(self, cache: SlotCache, slots: int) -> None:
        self._cache = cache
        self._rows: list[Row | None] = [None] * slots
        self._leftover: list[list[int]] = [[] for _ in range(slots)]
        """For each free slot, the tokens whose keys and values its last row left in the cache."""
        self.waiting: deque[Row] = deque()
        """Rows without a slot, in order of arrival."""
        self.to_encode: list[int] = []
        """Slots whose prompts need a pass of their own."""
        self.num_shared = 0
        """Number of prompt positions so far that were copied instead of encoded."""

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, slot: int) -> Row:
        row = self._rows[slot]
        assert row is not None
        return row

    @property
    def running(self) -> list[int]:
        """The slots that are in use, in ascending order."""
        return [slot for slot, row in enumerate(self._rows) if row is not None]

    def cancel(self, ticket: int) -> bool:
        """Drops a row. Returns whether it was waiting or running."""
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
        """Removes a row from its slot and returns it. Its keys and values remain and can be copied."""
        row = self[slot]
        self._leftover[slot] = row.shared[: row.length]
        self._rows[slot] = None
        if slot in self.to_encode:
            self.to_encode.remove(slot)
        return row

    def admit(self) -> None:
        """Gives free slots to the rows that wait longest.

        A row waits on if it begins like a prompt that is about to be encoded and can then be copied.
        """
        free = [slot for slot, row in enumerate(self._rows) if row is None]
        if not free or not self.waiting:
            return
        first = list(itertools.islice(self.waiting, len(free)))
        to_encode = [self[slot].shared for slot in self.to_encode]
        for row in first:
            source, shared = self._best_source(row.shared)
            if max((num_reusable(row.shared, prefix) for prefix in to_encode), default=0) > shared:
                continue
            slot = source if source in free else free[0]
            free.remove(slot)
            self.waiting.remove(row)
            if self._enter(row, slot, source, shared):
                to_encode.append(row.shared)

    def close_gaps(self) -> list[tuple[int, int]]:
        """Moves the last rows into free slots, so that the used slots are 0, 1, …; returns (from, to) of each move."""
        running = self.running
        gaps = [slot for slot in range(len(running)) if self._rows[slot] is None]
        moves = list(zip(running[len(running) - len(gaps) :], gaps, strict=True))
        for source, target in moves:
            row = self[source]
            self._cache.copy_row(source, target, row.length)
            self._leftover[source] = row.shared[: row.length]
            self._rows[target], self._rows[source] = row, None
        return moves

    def _best_source(self, prefix: list[int]) -> tuple[int, int]:
        """The slot that shares most positions with a prefix, and their number; (-1, 0) if none does.

        Of slots that share equally many, a free one is preferred, since the row can then use it without copying.
        """
        best = (-1, 0)
        for slot, row in enumerate(self._rows):
            cached = self._leftover[slot] if row is None else row.shared[: row.length]
            shared = num_reusable(prefix, cached)
            if shared > best[1] or (shared and shared == best[1] and row is None):
                best = slot, shared
        return best

    def _enter(self, row: Row, slot: int, source: int, shared: int) -> bool:
        """Puts a row into a slot and copies ``shared`` positions from slot ``source``.

        Returns whether the rest of its prompt must be encoded in a pass of its own.
        """
        row.start()
        self._cache.reserve(row.request.num_positions)
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


def num_reusable(prefix: list[int], cached: list[int]) -> int:
    """Number of leading positions of ``prefix`` that can be copied from ``cached``; 0 if too few to be worth it."""
    # The last position is always computed: the cache does not hold its hidden state.
    most = min(len(prefix) - 1, len(cached))
    if most < MIN_SHARED or 2 * most < len(prefix) or prefix[:MIN_SHARED] != cached[:MIN_SHARED]:
        return 0
    count = next((i for i in range(MIN_SHARED, most) if prefix[i] != cached[i]), most)
    return count if 2 * count >= len(prefix) else 0
