"""The forward passes of the thinking engine over the slots of its cache.

``SlotPasses`` turns lists of tokens and positions into tensors and runs the model; it knows nothing of requests.
``encode``, ``extend`` and ``advance`` each run one forward pass that writes keys and values into the cache. ``idle``
and ``idle_head`` have no effect: under ZeRO-3 every rank must run the same modules, so a rank with nothing to do runs
these while others work.

Shapes:
    S  slots
    C  capacity of a slot in positions
    R  rows in one pass; each is a slot
    Q  positions in one pass
    D  hidden size
    V  vocabulary size
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from coconut_ds.generation.rows import THOUGHT
from coconut_ds.generation.slots import PassPlan, SlotCache
from coconut_ds.model.latent_loop import LatentLoop


class SlotPasses:
    """Runs a model over a cache of ``slots`` rows with ``capacity`` positions each."""

    def __init__(self, loop: LatentLoop, slots: int, capacity: int) -> None:
        self._loop, self._capacity = loop, capacity
        self.cache = SlotCache(loop.num_layers, slots, capacity)

    def encode(self, prefixes: Sequence[Sequence[int]], slots: Sequence[int]) -> Tensor:
        """Encodes whole prefixes, each into a slot of its own. Returns the states [R, D] at their ends.

        Padding is on the right, so causal attention keeps real positions from attending to it.
        """
        lengths = [len(prefix) for prefix in prefixes]
        width = max(lengths)
        embeds = self.embed([[*prefix, *[0] * (width - len(prefix))] for prefix in prefixes])
        self.cache.set_plan(PassPlan(fresh=list(slots)))
        places = torch.arange(width, device=embeds.device).unsqueeze(0)
        ends = self.tensor([row * width + length - 1 for row, length in enumerate(lengths)])
        states = self._loop.states(embeds, self.cache, None, places, read=ends)
        return states.flatten(0, 1)[ends]

    def extend(self, slot: int, start: int, embeds: Tensor) -> Tensor:
        """Appends Q positions to one slot, from position ``start`` on.

        Returns states [1, Q, D] for input embeddings [1, Q, D].
        """
        end = start + embeds.shape[1]
        self.cache.set_plan(PassPlan(extended=(slot, start, end)))
        places = torch.arange(start, end, device=embeds.device)
        mask = torch.arange(end, device=embeds.device) <= places[:, None]
        return self._loop.states(embeds, self.cache, mask[None, None], places.unsqueeze(0))

    def advance(self, inputs: Sequence[int | None], lengths: Sequence[int], last: Tensor | None) -> Tensor:
        """Appends one position to each of the first R slots. Returns states [R, D].

        Args:
            inputs: for each slot a token id, or ``THOUGHT``.
            lengths: for each slot, the positions in the cache; the new position has this index.
            last: [S, D] the state at the last position of each slot, which is the input where that is ``THOUGHT``.
        """
        embeds = self.embed([0 if token == THOUGHT else token for token in inputs])
        if THOUGHT in inputs:
            assert last is not None
            thinks = self.tensor([token == THOUGHT for token in inputs])
            embeds = torch.where(thinks[:, None], last[: len(inputs)], embeds)
        places = self.tensor(lengths)
        columns = max(lengths) + 1
        if embeds.dtype == torch.bfloat16 and 3 * columns > 2 * self._capacity:
            # Whole slots are contiguous in memory. For bf16 products on a CPU, torch would first copy a part of each.
            columns = self._capacity
        self.cache.set_plan(PassPlan(places=places, columns=columns))
        mask = torch.arange(columns, device=places.device) <= places[:, None]
        return self._loop.states(embeds.unsqueeze(1), self.cache, mask[:, None, None], places.unsqueeze(1))[:, 0]

    def idle(self) -> None:
        """One pass over a single position, of which nothing is kept."""
        self.cache.set_plan(PassPlan())
        self._loop.states(self.embed([[0]]), self.cache, None, self.tensor([[0]]))

    def head(self, states: Tensor) -> Tensor:
        """Logits [R, V] for states [R, D], in fp32."""
        return self._loop.head(states)

    def idle_head(self) -> None:
        """Runs the head on one state of zeros."""
        weight = next(self._loop.model.base_model.parameters())
        self._loop.head(torch.zeros(1, self._loop.width, dtype=weight.dtype, device=self._loop.device))

    def embed(self, ids: Sequence[object]) -> Tensor:
        """Input embeddings [..., D] of (nested) lists of token ids [...]."""
        # An empty list would become a tensor of floats.
        return self._loop.embed(self.tensor(ids).long())

    def tensor(self, values: Sequence[object]) -> Tensor:
        """A tensor on the model's device."""
        return torch.tensor(values, device=self._loop.device)
