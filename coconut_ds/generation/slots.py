"""The engine's key/value cache: one row for each slot, allocated once. Passes write into it and never copy it.

Rows are aligned on the left: keys and values of position p are in column p. Columns beyond a row's length hold what an
earlier request left there, and are masked. A masked value is still multiplied, by 0, which would turn an infinity or
NaN into NaN; so what a slot holds when a request enters it must be finite: passes store nothing beyond the length of
each row, and the engine clears a slot whose states may not be finite (``slot_table.py``). transformers calls
``SlotLayer.update`` in each layer, but cannot tell it which slots the pass is for; so before each pass the engine sets
a ``PassPlan``, which all layers read.

Shapes:
    S  slots
    C  capacity of a slot in positions
    R  rows in one pass
    Q  positions in one pass
    H  key/value heads
    E  size of a head
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import Cache
from transformers.cache_utils import CacheLayerMixin

from coconut_ds.generation.spans import Span, spans_of
from coconut_ds.model.widths import rounded_up

COLUMN_UNIT = 16
"""Columns are reserved in multiples of this number."""


@dataclass
class PassPlan:
    """Which slots the current pass writes and reads; all layers share it.

    At most one of ``fresh``, ``extended`` and ``places`` is set. If none is, the pass stores nothing.
    """

    fresh: Tensor | None = None
    """[R] slots that are encoded from position 0 on; their rows attend only to the positions of this pass."""
    extended: tuple[int, int, int] | None = None
    """A slot that gets several more positions: the slot, the first new position, and the end of the new positions."""
    places: tuple[Tensor, Tensor] | None = None
    """The first R slots get one more position each: [R] the slots 0, 1, … R - 1, and [R] their new positions."""
    lengths: Tensor | None = None
    """With ``fresh``: [R] the number of positions of each row; those after them are padding, and are not stored."""
    columns: int = 0
    """With ``fresh``: number of columns to store; else number of columns of the cache to return for reading."""

    @property
    def is_empty(self) -> bool:
        """Whether the pass stores nothing."""
        return self.fresh is None and self.extended is None and self.places is None


class SlotLayer(CacheLayerMixin):
    """Keys and values of one layer, [S, H, C, E] each; allocated in the first pass, which determines H and E.

    Steps of fixed shape have places for slots that are free. Those store into one more column (``scratch``), which no
    pass reads.

    In bf16 on a CPU, only as many columns are allocated as requests can need, and more when a longer request comes
    (``reserve``): products read whole slots there, because torch would first copy a part of each.
    """

    is_sliding = False
    keys: Tensor
    values: Tensor

    def __init__(self, plan: PassPlan, slots: int, capacity: int, scratch: bool) -> None:
        super().__init__()
        self._plan, self._slots, self._capacity = plan, slots, capacity + scratch
        self._reserved = 0
        self._whole: list[Tensor] = []
        """Keys and values for all of a slot, of which ``keys`` and ``values`` take a part; empty unless allocated."""

    def reserve(self, columns: int) -> None:
        """Makes sure that the first ``columns`` columns exist."""
        if columns <= self._reserved:
            return
        self._reserved = min(rounded_up(columns, COLUMN_UNIT), self._capacity)
        if self.is_initialized and self._reserved > self.keys.shape[2]:
            # Where all of a slot is allocated, old and new keys are in the same memory.
            self.keys = self._longer(self.keys.clone() if self._whole else self.keys, 0)
            self.values = self._longer(self.values.clone() if self._whole else self.values, 1)

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Allocates the cache, filled with zeros.

        Attention multiplies masked values by 0, which uninitialized memory with inf or nan would turn into nan.
        """

        self.keys, self.values = self._zeros(key_states, 0), self._zeros(value_states, 1)
        self.is_initialized = True

    def _zeros(self, states: Tensor, which: int) -> Tensor:
        """[S, H, columns, E] zeros for states [R, H, Q, E]; ``which``: 0 for keys, 1 for values."""
        shape = (self._slots, states.shape[1], self._columns(states), states.shape[3])
        if not self._whole:
            return states.new_zeros(shape)
        return self._whole[which][: math.prod(shape)].view(shape).zero_()

    def _columns(self, states: Tensor) -> int:
        return self._reserved if _copies_parts(states) else self._capacity

    def _longer(self, old: Tensor, which: int) -> Tensor:
        """Zeros with as many columns as are reserved, and the keys or values ``old`` in the first of them."""
        new = self._zeros(old, which)
        new[:, :, : old.shape[2]] = old
        return new

    def take_memory(self) -> None:
        """Takes the memory for all of each slot now, after a first pass. What is cached is lost."""
        before = (self.keys, self.values)
        sizes = [self._slots * each.shape[1] * self._capacity * each.shape[3] for each in before]
        self.release()
        # ``zero_``, because an operating system gives memory to a process only once it is written to.
        self._whole = [each.new_empty(size).zero_() for each, size in zip(before, sizes, strict=True)]
        self.lazy_initialization(*before)

    def release(self) -> None:
        """Gives the memory back at once, even if the traceback of an error refers to tensors in it."""
        if self.is_initialized:
            for tensor in (self.keys, self.values, *self._whole):
                tensor.untyped_storage().resize_(0)
        self._whole, self.is_initialized = [], False

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Stores the keys and values [R, H, Q, E] of a pass as the plan says.

        Returns the keys and values that the pass attends to, as views of the cache where it can.
        """
        if self._plan.is_empty:
            return key_states, value_states
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        return self._store(self.keys, key_states), self._store(self.values, value_states)

    def _store(self, stored: Tensor, states: Tensor) -> Tensor:
        plan = self._plan
        if plan.fresh is not None:
            assert plan.lengths is not None
            _copy_rows(stored, plan.fresh, plan.lengths, states[:, :, : plan.columns])
        elif plan.extended is not None:
            slot, start, end = plan.extended
            stored[slot, :, start:end] = states[0, :, : end - start]
            return stored[slot : slot + 1, :, : plan.columns]
        elif plan.places is not None:
            slots, places = plan.places
            stored[slots, :, places] = states[:, :, 0]
            return stored[: len(slots), :, : plan.columns]
        return states

    @property
    def num_bytes(self) -> int:
        """Bytes that keys and values take; 0 before the first pass."""
        tensors = self._whole or ([self.keys, self.values] if self.is_initialized else [])
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)

    def copy_row(self, source: int, target: int, columns: int) -> None:
        """Copies the first ``columns`` positions of one slot to another."""
        if self.is_initialized:
            self.keys[target, :, :columns] = self.keys[source, :, :columns]
            self.values[target, :, :columns] = self.values[source, :, :columns]

    def clear(self, slot: int, columns: int | None = None) -> None:
        """Sets the keys and values of one slot to 0, in the first ``columns`` columns, or in all."""
        if self.is_initialized:
            self.keys[slot, :, :columns] = 0
            self.values[slot, :, :columns] = 0

    def get_seq_length(self) -> int:
        """Part of transformers' interface. Not used: the engine always passes position ids, and masks where needed."""
        return 0

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Part of transformers' interface. Called only in passes without a mask, whose rows see only themselves."""
        return query_length, 0

    def get_max_length(self) -> int:
        """Part of transformers' interface: C, the capacity of a slot."""
        return self._capacity


class SlotCache(Cache):
    """The keys and values of all layers for all slots."""

    def __init__(self, num_layers: int, slots: int, capacity: int, scratch: bool = False) -> None:
        self.plan = PassPlan()
        self.slot_layers = [SlotLayer(self.plan, slots, capacity, scratch) for _ in range(num_layers)]
        super().__init__(layers=list(self.slot_layers))

    def set_plan(self, plan: PassPlan) -> None:
        """Says which slots the next pass writes and reads."""
        self.plan.__dict__.update(plan.__dict__)

    def copy_row(self, source: int, target: int, columns: int) -> None:
        """Copies the first ``columns`` positions of one slot to another, in all layers."""
        for layer in self.slot_layers:
            layer.copy_row(source, target, columns)

    def clear(self, slot: int, columns: int | None = None) -> None:
        """Sets the keys and values of one slot to 0 in all layers, in the first ``columns`` columns, or in all."""
        for layer in self.slot_layers:
            layer.clear(slot, columns)

    def take_memory(self) -> None:
        """Takes the memory for all slots now, after a first pass, instead of when they are written to."""
        for layer in self.slot_layers:
            layer.take_memory()

    def release(self) -> None:
        """Gives all memory back; the cache cannot be used any more."""
        for layer in self.slot_layers:
            layer.release()

    def reserve(self, columns: int) -> None:
        """Makes sure that the first ``columns`` columns exist, up to the capacity; see ``SlotLayer``."""
        for layer in self.slot_layers:
            layer.reserve(columns)

    def readable(self, columns: int) -> int:
        """The number of columns that a one-position pass should read, if it needs ``columns``."""
        keys = self.slot_layers[0].keys
        return keys.shape[2] if _copies_parts(keys) and 3 * columns > 2 * keys.shape[2] else columns

    def spans(self, needed: Sequence[int]) -> list[Span] | None:
        """The spans that a one-position pass should read whose rows need this many columns (at least 1) each; None: the
        same columns for all rows. On a CPU, where such a pass waits for memory most of the time."""
        keys = self.slot_layers[0].keys
        if keys.device.type != "cpu":
            return None
        each = 2 * keys.shape[1] * keys.shape[3] * keys.element_size()
        spans = [span._replace(columns=self.readable(span.columns)) for span in spans_of(needed, each)]
        return spans if len(spans) > 1 else None

    @property
    def num_bytes(self) -> int:
        """Bytes that keys and values take; 0 before the first pass."""
        return sum(layer.num_bytes for layer in self.slot_layers)


def _copy_rows(stored: Tensor, slots: Tensor, lengths: Tensor, states: Tensor) -> None:
    """Copies the first ``lengths`` [R] positions of states [R, H, Q, E] to the given slots [R] of ``stored``
    [S, H, C, E], the others as zeros or not at all."""
    if stored.device.type == "cpu":
        _row_by_row(stored, slots, lengths, states)
    else:
        is_padding = torch.arange(states.shape[2], device=states.device) >= lengths[:, None]
        stored[:, :, : states.shape[2]].index_copy_(0, slots, states.masked_fill(is_padding[:, None, :, None], 0))


def _row_by_row(stored: Tensor, slots: Tensor, lengths: Tensor, states: Tensor) -> None:
    """Like ``_copy_rows``. A CPU would go element by element otherwise; like this each head is copied as one block."""
    for row, (slot, length) in enumerate(zip(slots.tolist(), lengths.tolist(), strict=True)):
        stored[slot, :, :length] = states[row, :, :length]


def _copies_parts(states: Tensor) -> bool:
    """Whether products with a part of the columns of each slot copy that part first, as torch does in bf16 on a CPU."""
    return states.dtype == torch.bfloat16 and states.device.type == "cpu"
