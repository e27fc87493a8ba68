"""The engine's key/value cache: one row for each slot, allocated once. Passes write into it and never copy it.

Rows are aligned on the left: keys and values of position p are in column p. Columns beyond a row's length hold what an
earlier request left there, and are masked. transformers calls ``SlotLayer.update`` in each layer, but cannot tell it
which slots the pass is for; so before each pass the engine sets a ``PassPlan``, which all layers read.

Shapes:
    S  slots
    C  capacity of a slot in positions
    R  rows in one pass
    Q  positions in one pass
    H  key/value heads
    E  size of a head
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import Cache
from transformers.cache_utils import CacheLayerMixin

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
    columns: int = 0
    """With ``fresh``: number of columns to store; else number of columns of the cache to return for reading."""

    @property
    def is_empty(self) -> bool:
        """Whether the pass stores nothing."""
        return self.fresh is None and self.extended is None and self.places is None


class SlotLayer(CacheLayerMixin):
    """Keys and values of one layer, [S, H, C, E] each; allocated in the first pass, which determines H and E.

    In bf16 on a CPU, only as many columns are allocated as requests can need, and more when a longer request comes
    (``reserve``): products read whole slots there, because torch would first copy a part of each.
    """

    is_sliding = False
    keys: Tensor
    values: Tensor

    def __init__(self, plan: PassPlan, slots: int, capacity: int) -> None:
        super().__init__()
        self._plan, self._slots, self._capacity = plan, slots, capacity
        self._reserved = 0

    def reserve(self, columns: int) -> None:
        """Makes sure that the first ``columns`` columns exist."""
        if columns <= self._reserved:
            return
        self._reserved = min(rounded_up(columns, COLUMN_UNIT), self._capacity)
        if self.is_initialized and self._reserved > self.keys.shape[2]:
            keys, values = self.keys, self.values
            self.lazy_initialization(keys, values)
            for old, new in ((keys, self.keys), (values, self.values)):
                new[:, :, : old.shape[2]] = old

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Allocates the cache, filled with zeros.

        Attention multiplies masked values by 0, which uninitialized memory with inf or nan would turn into nan.
        """

        def zeros(states: Tensor) -> Tensor:
            columns = self._reserved if _copies_parts(states) else self._capacity
            return states.new_zeros(self._slots, states.shape[1], columns, states.shape[3])

        self.keys, self.values = zeros(key_states), zeros(value_states)
        self.is_initialized = True

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
            _copy_rows(stored[:, :, : plan.columns], plan.fresh, states[:, :, : plan.columns])
        elif plan.extended is not None:
            slot, start, end = plan.extended
            stored[slot, :, start:end] = states[0]
            return stored[slot : slot + 1, :, : plan.columns]
        elif plan.places is not None:
            slots, places = plan.places
            stored[slots, :, places] = states[:, :, 0]
            return stored[: len(slots), :, : plan.columns]
        return states

    def copy_row(self, source: int, target: int, columns: int) -> None:
        """Copies the first ``columns`` positions of one slot to another."""
        if self.is_initialized:
            self.keys[target, :, :columns] = self.keys[source, :, :columns]
            self.values[target, :, :columns] = self.values[source, :, :columns]

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

    def __init__(self, num_layers: int, slots: int, capacity: int) -> None:
        self.plan = PassPlan()
        self.slot_layers = [SlotLayer(self.plan, slots, capacity) for _ in range(num_layers)]
        super().__init__(layers=list(self.slot_layers))

    def set_plan(self, plan: PassPlan) -> None:
        """Says which slots the next pass writes and reads."""
        self.plan.__dict__.update(plan.__dict__)

    def copy_row(self, source: int, target: int, columns: int) -> None:
        """Copies the first ``columns`` positions of one slot to another, in all layers."""
        for layer in self.slot_layers:
            layer.copy_row(source, target, columns)

    def reserve(self, columns: int) -> None:
        """Makes sure that the first ``columns`` columns exist, up to the capacity; see ``SlotLayer``."""
        for layer in self.slot_layers:
            layer.reserve(columns)

    def readable(self, columns: int) -> int:
        """The number of columns that a one-position pass should read, if it needs ``columns``."""
        keys = self.slot_layers[0].keys
        return keys.shape[2] if _copies_parts(keys) and 3 * columns > 2 * keys.shape[2] else columns

    @property
    def num_bytes(self) -> int:
        """Bytes that keys and values take; 0 before the first pass."""
        tensors = [t for layer in self.slot_layers if layer.is_initialized for t in (layer.keys, layer.values)]
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _copy_rows(stored: Tensor, slots: Tensor, states: Tensor) -> None:
    """Copies states [R, H, Q, E] to the given slots [R] of ``stored`` [S, H, Q, E], in one operation."""
    if stored.device.type == "cpu":
        _row_by_row(stored, slots, states)
    else:
        stored.index_copy_(0, slots, states)


def _row_by_row(stored: Tensor, slots: Tensor, states: Tensor) -> None:
    """Like ``_copy_rows``. A CPU would go element by element otherwise; like this each head is copied as one block."""
    for row, slot in enumerate(slots.tolist()):
        stored[slot] = states[row]


def _copies_parts(states: Tensor) -> bool:
    """Whether products with a part of the columns of each slot copy that part first, as torch does in bf16 on a CPU."""
    return states.dtype == torch.bfloat16 and states.device.type == "cpu"
