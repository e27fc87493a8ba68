"""The forward passes of the thinking engine over the slots of its cache.

``SlotPasses`` turns lists of tokens and positions into tensors and runs the model; it knows nothing of requests.
``encode``, ``extend`` and ``advance`` each run one forward pass that writes keys and values into the cache, the state
at the last position of each slot into ``last``, and what the feed makes of it into ``fed``. ``idle`` and ``idle_head``
have no effect: under ZeRO-3 every rank must run the same modules, so a rank with nothing to do runs these while others
work. For the same reason the feed runs once in every pass, whether or not a thought follows.

On CUDA, passes over several positions are widened to a multiple of ``CUDA_WIDTHS`` positions. What is computed there is
not read.

Shapes:
    S  slots
    C  capacity of a slot in positions
    R  rows in one pass; each is a slot
    Q  positions in one pass
    D  hidden size
    V  vocabulary size
"""

from collections.abc import Collection, Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad

from coconut_ds.generation.rows import THOUGHT
from coconut_ds.generation.slots import PassPlan, SlotCache
from coconut_ds.generation.spans import reading
from coconut_ds.generation.uploads import upload
from coconut_ds.model.latent_loop import LatentLoop
from coconut_ds.model.widths import CUDA_WIDTHS, rounded_up

WIDENING = ("cuda",)
"""Types of devices on which passes are widened."""


class SlotPasses:
    """Runs a model over a cache of ``slots`` rows with ``capacity`` positions each."""

    def __init__(self, loop: LatentLoop, slots: int, capacity: int, scratch: bool = False) -> None:
        """``scratch``: see ``SlotLayer``; that column is then a place for ``step``, with the index ``capacity``."""
        self._loop, self.slots, self.capacity, self._scratch = loop, slots, capacity, scratch
        self.cache = SlotCache(loop.num_layers, slots, capacity, scratch)
        self._last: Tensor | None = None
        self._fed: Tensor | None = None

    @property
    def device(self) -> torch.device:
        """The model's device."""
        return self._loop.device

    @property
    def last(self) -> Tensor:
        """[S, D] the hidden state at the last position of each slot. There is none before the first pass."""
        assert self._last is not None, "no pass has been made"
        return self._last

    @property
    def fed(self) -> Tensor:
        """[S, D] the input embedding of the next position of each slot if it is a thought; ``last`` without a feed."""
        assert self._fed is not None, "no pass has been made"
        return self._fed

    @property
    def has_feed(self) -> bool:
        """Whether thoughts go through a feed before they are fed back."""
        return self._loop.feed is not None

    def thought(self, slot: int) -> tuple[Tensor, Tensor]:
        """``last`` and ``fed`` [D] of a slot, to be read or changed in place; without a feed the same tensor twice."""
        state = self.last[slot]
        return state, self.fed[slot] if self.has_feed else state

    def encode(self, prefixes: Sequence[Sequence[int]], slots: Sequence[int]) -> None:
        """Encodes whole prefixes, each into a slot of its own.

        Padding is on the right, so causal attention keeps real positions from attending to it.
        """
        lengths = [len(prefix) for prefix in prefixes]
        width = self.widened(max(lengths))
        ends = [row * width + length - 1 for row, length in enumerate(lengths)]
        # A row is padded with its own last token: even masked, the state of another token may be NaN and spoil the row.
        ids = [[*prefix, *[prefix[-1]] * (width - len(prefix))] for prefix in prefixes]
        table = [[*each, *rest] for each, *rest in zip(ids, ends, slots, lengths, strict=True)]
        tokens, read, where, stored = upload(table, self.device).split([width, 1, 1, 1], dim=1)
        read, where = read.flatten(), where.flatten()
        self.cache.set_plan(PassPlan(fresh=where, lengths=stored.flatten(), columns=max(lengths)))
        # Padding beyond the capacity could leave the model's context.
        places = torch.arange(width, device=self.device).clamp(max=self.capacity - 1).unsqueeze(0)
        states = self._loop.states(self._loop.embed(tokens), self.cache, None, places, read=read)
        states = states.flatten(0, 1)[read]
        self._store(states, self._loop.fed(states), where)

    def extend(self, slot: int, start: int, embeds: Tensor, all_states: bool = True) -> tuple[Tensor, Tensor]:
        """Appends Q positions to one slot, from position ``start`` on.

        Returns states [Q, D] for input embeddings [Q, D], and what the feed makes of the states; if not
        ``all_states``, only those of the last position are valid, which is cheaper.
        """
        count = len(embeds)
        width = min(self.widened(count), self.capacity - start)
        columns = min(self.widened(start + width), self.capacity)
        self.cache.set_plan(PassPlan(extended=(slot, start, start + count), columns=columns))
        places = torch.arange(start, start + width, device=self.device)
        mask = _mask(places.unsqueeze(0), columns, embeds.dtype)
        embeds = pad(embeds, (0, 0, 0, width - count)).unsqueeze(0)
        read = None if all_states else upload([count - 1], self.device)
        states = self._loop.states(embeds, self.cache, mask, places.unsqueeze(0), read=read)[0, :count]
        fed = self._loop.fed(states)
        self._store(states[-1], fed[-1], slot)
        return states, fed

    def advance(self, orders: Sequence[tuple[int, int]], unread: Collection[int] = ()) -> None:
        """Appends one position to each of the first R slots.

        Args:
            orders: for each slot the input, a token id or ``THOUGHT``, and the position that it gets.
            unread: slots whose new states are not used; they need not attend to what they hold.
        """
        inputs, places = upload(orders, self.device).unbind(dim=1)
        thinks = any(token == THOUGHT for token, _ in orders)
        needed = [1 if slot in unread else place + 1 for slot, (_, place) in enumerate(orders)]
        spans = self.cache.spans(needed)
        columns = max(place for _, place in orders) + 1 if spans is None else max(span.columns for span in spans)
        with reading(spans):
            self.step(inputs, places, columns, thinks)

    def step(self, inputs: Tensor, places: Tensor, columns: int, thinks: bool = True) -> None:
        """Like ``advance``, for tensors. Reads nothing back from the device.

        Args:
            inputs: [R] token ids or ``THOUGHT``.
            places: [R] the positions that the slots get; ``capacity`` stands for the scratch column.
            columns: number of columns of the cache to read; more than any position.
            thinks: whether an input may be ``THOUGHT``.
        """
        if thinks:
            embeds = self._loop.embed(inputs.clamp(min=0))
            embeds = torch.where((inputs == THOUGHT)[:, None], self.fed[: len(inputs)], embeds)
        else:
            embeds = self._loop.embed(inputs)
        columns = self.cache.readable(columns)
        slots = torch.arange(len(places), device=places.device)
        self.cache.set_plan(PassPlan(places=(slots, places), columns=columns))
        places = places.unsqueeze(1)
        mask = _mask(places, columns, embeds.dtype)
        # The scratch column is beyond the model's context.
        positions = places.clamp(max=self.capacity - 1) if self._scratch else places
        states = self._loop.states(embeds.unsqueeze(1), self.cache, mask, positions)[:, 0]
        self._store(states, self._loop.fed(states), slice(len(inputs)))

    def move(self, source: int, target: int) -> None:
        """Copies the last state of one slot to another, and what the feed makes of it."""
        self.last[target] = self.last[source]
        if self.has_feed:
            self.fed[target] = self.fed[source]

    def is_finite(self, slot: int) -> bool:
        """Whether the last state of a slot is finite; then the keys and values that it attended to are finite too."""
        return self._last is None or bool(self._last[slot].isfinite().all())

    def logits(self, slots: Sequence[int]) -> Tensor:
        """Logits [R, V] after the last positions of ``slots``, in fp32."""
        return self.head(self.last[upload(slots, self.device)])

    def head(self, states: Tensor) -> Tensor:
        """Logits [R, V] for states [R, D], in fp32."""
        return self._loop.head(states)

    def widened(self, width: int) -> int:
        """The width that a pass over ``width`` positions of each row has."""
        return rounded_up(width, CUDA_WIDTHS if self.device.type in WIDENING else 1)

    def idle(self) -> None:
        """One pass over a single position, of which nothing is kept."""
        self.cache.set_plan(PassPlan())
        zero = upload([[0]], self.device)
        self._loop.fed(self._loop.states(self._loop.embed(zero), self.cache, None, zero))

    def idle_head(self) -> None:
        """Runs the head on one state of zeros."""
        weight = next(self._loop.model.base_model.parameters())
        self.head(torch.zeros(1, self._loop.width, dtype=weight.dtype, device=self.device))

    def embed(self, ids: Sequence[int]) -> Tensor:
        """Input embeddings [Q, D] of token ids."""
        return self._loop.embed(upload(ids, self.device))

    def _store(self, states: Tensor, fed: Tensor, where: int | slice | Tensor) -> None:
        """Stores states [D] or [R, D] as those at the last positions of the slots ``where``, and what the feed makes of
        them."""
        if self._last is None:
            self._last = states.new_zeros(self.slots, states.shape[-1])
            self._fed = torch.zeros_like(self._last) if self.has_feed else self._last
        self._last[where] = states
        if self.has_feed:
            self.fed[where] = fed


def _mask(places: Tensor, columns: int, dtype: torch.dtype) -> Tensor:
    """The mask [R, 1, Q, columns] of positions ``places`` [R, Q], each of which sees itself and all before it.

    With Q = 1 it is in the form that ``attention.slot_attention`` adds to scores of type ``dtype``, made once for all
    layers.
    """
    seen = (torch.arange(columns, device=places.device) <= places.unsqueeze(-1)).unsqueeze(1)
    return torch.where(seen, 0.0, float("-inf")).to(dtype) if places.shape[1] == 1 else seen
