"""A key/value cache with one row a slot, made once; passes write into it and never copy what is there.

Rows are aligned on the left: the entry of position p stands in column p. What stands beyond a row's length is of
no request any more, and is masked. ``Plan`` says which rows the pass at hand writes and reads.

Legend: ``S`` slots, ``H`` key/value heads, ``C`` capacity in positions, ``E`` entries of a head.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import Cache
from transformers.cache_utils import CacheLayerMixin


@dataclass
class PassPlan:
    """The pass at hand, for all layers. At most one of the three is set; none of them: nothing is kept."""

    fresh: list[int] | None = None
    """Slots whose rows are encoded from position 0 on: they see only themselves."""
    extended: tuple[int, int, int] | None = None
    """Slot, first and last position (exclusive) of a row that goes on for several positions."""
    places: Tensor | None = None
    """[n] position of each of the first n slots, which go on for one position."""
    columns: int = 0
    """With ``places``: columns that are read."""

    @property
    def is_empty(self) -> bool:
        """Whether nothing is kept."""
        return self.fresh is None and self.extended is None and self.places is None


class SlotLayer(CacheLayerMixin):
    """One layer's keys and values, [S, H, C, E] each. Memory is taken at the first pass, which knows H and E."""

    is_sliding = False
    keys: Tensor
    values: Tensor

    def __init__(self, plan: PassPlan, slots: int, capacity: int) -> None:
        super().__init__()
        self._plan, self._slots, self._capacity = plan, slots, capacity

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Takes the memory. Zeros, since what is masked is multiplied by 0, which infinite rubbish would survive."""

        def zeros(states: Tensor) -> Tensor:
            return states.new_zeros(self._slots, states.shape[1], self._capacity, states.shape[3])

        self.keys, self.values = zeros(key_states), zeros(value_states)
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Keeps the states [R, H, Q, E] of a pass where the plan says; returns those that the pass sees."""
        if self._plan.is_empty:
            return key_states, value_states
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        seen = self._put(self.keys, key_states), self._put(self.values, value_states)
        return seen

    def _put(self, kept: Tensor, states: Tensor) -> Tensor:
        plan = self._plan
        if plan.fresh is not None:
            # Row by row each head is one block to copy, which an indexed copy would take element by element.
            for row, slot in enumerate(plan.fresh):
                kept[slot, :, : states.shape[2]] = states[row]
        elif plan.extended is not None:
            slot, start, end = plan.extended
            kept[slot, :, start:end] = states[0]
            return kept[slot : slot + 1, :, :end]
        elif plan.places is not None:
            count = len(plan.places)
            kept[torch.arange(count, device=kept.device), :, plan.places] = states[:, :, 0]
            return kept[:count, :, : plan.columns]
        return states

    def copy_row(self, source: int, target: int, columns: int) -> None:
        """The first ``columns`` of one slot into another."""
        if self.is_initialized:
            self.keys[target, :, :columns] = self.keys[source, :, :columns]
            self.values[target, :, :columns] = self.values[source, :, :columns]

    def get_seq_length(self) -> int:
        """Part of the interface; positions and masks are always given here."""
        return 0

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Asked for only where no mask is given: rows that see only themselves."""
        return query_length, 0

    def get_max_length(self) -> int:
        """C."""
        return self._capacity


class SlotCache(Cache):
    """The cache of all layers."""

    def __init__(self, num_layers: int, slots: int, capacity: int) -> None:
        self.plan = PassPlan()
        self.slot_layers = [SlotLayer(self.plan, slots, capacity) for _ in range(num_layers)]
        super().__init__(layers=list(self.slot_layers))

    def set_plan(self, plan: PassPlan) -> None:
        """What the next pass does."""
        self.plan.__dict__.update(plan.__dict__)

    def copy_row(self, source: int, target: int, columns: int) -> None:
        """The first ``columns`` of one slot into another, in all layers."""
        for layer in self.slot_layers:
            layer.copy_row(source, target, columns)

    @property
    def num_bytes(self) -> int:
        """Memory taken by keys and values."""
        tensors = [t for layer in self.slot_layers if layer.is_initialized for t in (layer.keys, layer.values)]
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
