"""Assigns requests to slots, queues the others, and finds prompts in the cache that a new prompt begins like."""

import itertools
import math
from collections import defaultdict, deque
from collections.abc import Callable, Iterable

from coconut_ds.generation.rows import Beginning, Row
from coconut_ds.generation.slots import SlotCache

MIN_SHARED = 16
"""Copy from another prompt only if it shares at least this many positions, and half of the new prompt's prefix."""
MAX_SCRIPTED = 4
"""If at most this many tokens of a prompt remain after copying, they join the one-position passes; otherwise they are
encoded in a separate pass."""

NOTHING = Beginning("", [])
_Start = tuple[str, tuple[int, ...]]
"""Owner and first tokens of a prompt."""


class SlotTable:
    """The rows that hold slots, and the queue of rows that wait for one."""

    def __init__(self, cache: SlotCache, slots: int, is_finite: Callable[[int], bool]) -> None:
        """``is_finite(slot)``: whether the last state of a slot is finite, and so its keys and values."""
        self._cache, self._is_finite = cache, is_finite
        self._rows: list[Row | None] = [None] * slots
        self._leftover: list[Beginning] = [NOTHING] * slots
        """For each free slot, what its last row left in the cache."""
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

    @property
    def stepping(self) -> list[int]:
        """The slots whose rows take part in the steps, in ascending order."""
        return [slot for slot, row in enumerate(self._rows) if row is not None and row.takes_steps]

    @property
    def num_running(self) -> int:
        """Number of slots that are in use. Any thread may ask."""
        return len(self._rows) - self._rows.count(None)

    @property
    def num_held(self) -> int:
        """Number of cache positions that running rows use. Any thread may ask."""
        return sum(row.length for row in list(self._rows) if row is not None)

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
        """Removes a row from its slot and returns it. Its keys and values remain and can be copied, unless some may not
        be finite."""
        row = self[slot]
        if row.failure is None and self._is_proven(slot, row.length):
            self._leftover[slot] = row.cached
        else:
            self._clear(slot)
        self._rows[slot] = None
        if slot in self.to_encode:
            self.to_encode.remove(slot)
        return row

    def admit(self, most: float = math.inf) -> None:
        """Gives free slots to the rows that wait longest.

        A row waits on if it begins like a prompt that is about to be encoded and can then be copied.

        Args:
            most: a row waits while the prompts of its owner that are being encoded have at least this many positions
                left in total; at most half of ``most`` is counted for each prompt, so one long prompt does not keep
                the owner's next one out.
        """
        free = [slot for slot, row in enumerate(self._rows) if row is None]
        if not free or not self.waiting:
            return
        first = list(itertools.islice(self.waiting, len(free)))
        alike = _Alike()
        for slot in range(len(self)):
            alike.add_slot(slot, self._cached(slot))
        for slot in self.to_encode:
            alike.add_row(self[slot], most)
        for row in first:
            if alike.left[row.request.owner] >= most:
                continue
            source, shared = self._best_source(row, alike.slots(row))
            if max((_num_reusable(row, other.beginning) for other in alike.rows(row)), default=0) > shared:
                continue
            slot = source if source in free else free[0]
            free.remove(slot)
            self.waiting.remove(row)
            if self._enter(row, slot, source, shared):
                alike.add_row(row, most)
            # What it has copied is still in its source, so its slot need not be noted.

    def encoded(self, slot: int) -> None:
        """Notes that the prompt in a slot has been encoded up to its first thought."""
        self[slot].is_encoded = True
        self.to_encode.remove(slot)

    def close_gaps(self) -> list[tuple[int, int]]:
        """Moves the last rows that take steps into free slots, so that no slot before the last such row is free.

        Returns (from, to) of each move.
        """
        stepping = self.stepping
        free, count = [slot for slot, row in enumerate(self._rows) if row is None], 0
        while count < min(len(free), len(stepping)) and free[count] < stepping[-1 - count]:
            count += 1
        moves = list(zip(stepping[len(stepping) - count :], free[:count], strict=True))
        for source, target in moves:
            row = self[source]
            self._cache.copy_row(source, target, row.length)
            if row.num_finite >= row.length:
                self._leftover[source] = row.cached
            else:
                # Cheaper than to wait for the device and ask: nothing is lost, since the row has it all.
                self._clear(source, row.length)
            self._rows[target], self._rows[source] = row, None
        return moves

    def _clear(self, slot: int, columns: int | None = None) -> None:
        """Removes what may not be finite from the first columns of a slot, so that it cannot spoil the next row there;
        ``columns`` None: from all."""
        self._cache.clear(slot, columns)
        self._leftover[slot] = NOTHING

    def _cached(self, slot: int) -> Beginning:
        """What the cache has in a slot, of the row that runs there or ran there last."""
        row = self._rows[slot]
        return self._leftover[slot] if row is None else row.cached

    def _best_source(self, row: Row, slots: Iterable[int]) -> tuple[int, int]:
        """The slot of ``slots`` that shares most positions with a row's prompt, and their number; (-1, 0) if none does.

        Of slots that share equally many, a free one is preferred, since the row can then use it without copying.
        """
        best = (-1, 0)
        for slot in slots:
            other, shared = self._rows[slot], _num_reusable(row, self._cached(slot))
            is_better = shared > best[1] or (shared and shared == best[1] and other is None)
            if is_better and (other is None or self._is_proven(slot, shared)):
                best = slot, shared
        return best

    def _is_proven(self, slot: int, count: int) -> bool:
        """Whether the first ``count`` keys and values of a running row are finite."""
        row = self[slot]
        if row.num_finite < count and self._is_finite(slot):
            row.num_finite = row.length
        return row.num_finite >= count

    def _enter(self, row: Row, slot: int, source: int, shared: int) -> bool:
        """Puts a row into a slot and copies ``shared`` positions from slot ``source``.

        Returns whether the rest of its prompt must be encoded in a pass of its own.
        """
        row.start()
        self._cache.reserve(row.request.num_positions)
        self._rows[slot] = row
        row.length = row.num_shared = row.num_finite = shared
        self.num_shared += shared
        if shared and source != slot:
            self._cache.copy_row(source, slot, shared)
        rest = row.prefix[shared:]
        if shared and len(rest) <= MAX_SCRIPTED:
            row.script.extendleft(reversed(rest))
            row.input = row.script.popleft()
            row.is_encoded = True
            return False
        self.to_encode.append(slot)
        return True


class _Alike:
    """Slots, and rows that are to be encoded, by their first ``MIN_SHARED`` tokens.

    A row is compared only with those that begin as it does, instead of with all.
    """

    def __init__(self) -> None:
        self._slots: defaultdict[_Start, list[int]] = defaultdict(list)
        self._rows: defaultdict[_Start, list[Row]] = defaultdict(list)
        self.left: defaultdict[str, float] = defaultdict(float)
        """For each owner, the number of positions that are left to encode; at most ``most / 2`` for each row."""

    def add_slot(self, slot: int, cached: Beginning) -> None:
        """Notes what the cache has in a slot."""
        self._slots[_start(cached)].append(slot)

    def add_row(self, row: Row, most: float) -> None:
        """Notes a row whose prompt is to be encoded."""
        self._rows[_start(row.beginning)].append(row)
        self.left[row.request.owner] += min(len(row.prefix) - row.length, most / 2)

    def slots(self, row: Row) -> list[int]:
        """The slots that began as a row does, in ascending order."""
        return self._slots[_start(row.beginning)]

    def rows(self, row: Row) -> list[Row]:
        """The rows that begin as a row does."""
        return self._rows[_start(row.beginning)]


def _start(beginning: Beginning) -> _Start:
    return beginning.owner, tuple(beginning.tokens[:MIN_SHARED])


def _num_reusable(row: Row, cached: Beginning) -> int:
    """Number of leading positions of a row's prompt that can be copied from another's."""
    return num_reusable(row.beginning.tokens, cached.tokens) if row.request.owner == cached.owner else 0


def num_reusable(prefix: list[int], cached: list[int]) -> int:
    """Number of leading positions of ``prefix`` that can be copied from ``cached``; 0 if too few to be worth it."""
    # The last position is always computed: the cache does not hold its hidden state.
    most = min(len(prefix) - 1, len(cached))
    if most < MIN_SHARED or 2 * most < len(prefix) or prefix[:MIN_SHARED] != cached[:MIN_SHARED]:
        return 0
    count = next((i for i in range(MIN_SHARED, most) if prefix[i] != cached[i]), most)
    return count if 2 * count >= len(prefix) else 0
