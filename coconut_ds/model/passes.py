"""The passes of one batch over one set of keys and values: first the prefix, then positions after it.

``LatentPasses`` is made for training: see ``latent_attention`` and ``deferred``. ``PlainPasses`` takes transformers'
cache and whatever attention the model was loaded with: flash attention, eager, layers that take no other.

Legend: ``B`` rows, ``P`` columns of the prefix, ``Q`` positions of a pass, ``D`` hidden size.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from coconut_ds.model.attention import AttentionSwitch, takes_attention
from coconut_ds.model.collate import LatentInputs
from coconut_ds.model.deferred import DeferredWeights
from coconut_ds.model.latent_attention import NAME, LatentCache, LatentLayer

Reading = Callable[[], AbstractContextManager[None]]


class Passes(Protocol):
    """What the loop asks for."""

    def prefix(self, embeds: Tensor) -> Tensor:
        """States [B, P, D] of the prefix. Pads stand on its right, where causal attention does not look."""

    def later(self, embeds: Tensor, start: int, again: bool = False) -> Tensor:
        """States [B, Q, D] of columns from ``start`` on. ``again``: what came after the prefix is forgotten first."""


def passes_of(
    model: PreTrainedModel, inputs: LatentInputs, num_layers: int, reading: Reading, defer_gradients: bool = False
) -> Passes:
    """The passes of a batch.

    Args:
        model: a causal language model.
        inputs: the batch.
        num_layers: of the model.
        reading: a context of the pass over the prefix, see ``last_layer``.
        defer_gradients: whether gradients of weights are summed as in ``deferred``; ``PlainPasses`` never does so.
    """
    if takes_attention(model) and model.config._attn_implementation == "sdpa":
        return LatentPasses(model, inputs, num_layers, reading, defer_gradients)
    return PlainPasses(model, inputs, reading)


class LatentPasses:
    """Nothing is copied or masked that need not be."""

    def __init__(
        self, model: PreTrainedModel, inputs: LatentInputs, num_layers: int, reading: Reading, defer_gradients: bool
    ) -> None:
        self._model, self._inputs = model, inputs
        mask, width = inputs.attention_mask, inputs.prefix_ids.shape[1]
        pads = None if mask is None else mask[:, :width] == 0
        weights = DeferredWeights() if defer_gradients else None
        # Not a method: a batch that refers to itself would hold its memory until Python looks for such rings.
        self._computing = partial(_computing, AttentionSwitch(model, NAME), weights, reading)
        self._cache = LatentCache([LatentLayer() for _ in range(num_layers)], pads, self._computing)

    def prefix(self, embeds: Tensor) -> Tensor:
        """See ``Passes``."""
        return self._states(embeds, None, later=False)

    def later(self, embeds: Tensor, start: int, again: bool = False) -> Tensor:
        """See ``Passes``."""
        if again:
            self._cache.forget_later()
        return self._states(embeds, positions_of(self._inputs, start, embeds.shape[1]), later=True)

    def _states(self, embeds: Tensor, positions: Tensor | None, later: bool) -> Tensor:
        with self._computing(later):
            return last_hidden_states(self._model, embeds, self._cache, None, positions, latent_cache=self._cache)


class PlainPasses:
    """transformers' own cache and masks."""

    def __init__(self, model: PreTrainedModel, inputs: LatentInputs, reading: Reading) -> None:
        self._model, self._inputs, self._reading = model, inputs, reading
        self._cache = DynamicCache(config=model.config)
        self._prefix: list[tuple[Tensor, Tensor]] = []

    @property
    def _layers(self) -> list[Any]:
        return list(self._cache.layers)

    def prefix(self, embeds: Tensor) -> Tensor:
        """See ``Passes``."""
        # The cache is there before the pass: with position ids and no cache the library takes rows for packed ones.
        with self._reading():
            states = last_hidden_states(self._model, embeds, self._cache)
        self._prefix = [(layer.keys, layer.values) for layer in self._layers]
        return states

    def later(self, embeds: Tensor, start: int, again: bool = False) -> Tensor:
        """See ``Passes``."""
        if again:
            self._cache = DynamicCache(ddp_cache_data=self._prefix)
        mask, count = self._inputs.attention_mask, embeds.shape[1]
        mask = None if mask is None else mask[:, : start + count]
        return last_hidden_states(self._model, embeds, self._cache, mask, positions_of(self._inputs, start, count))


def last_hidden_states(
    model: PreTrainedModel,
    embeds: Tensor,
    cache: Any,
    attention_mask: Tensor | None = None,
    position_ids: Tensor | None = None,
    **more: Any,
) -> Tensor:
    """Hidden states [B, Q, D] after the final norm for embeddings [B, Q, D]; the cache grows by Q."""
    output = model.base_model(
        inputs_embeds=embeds,
        past_key_values=cache,
        attention_mask=attention_mask,
        position_ids=position_ids,
        use_cache=True,
        **more,
    )
    hidden: Tensor = output.last_hidden_state
    return hidden


def positions_of(inputs: LatentInputs, start: int, count: int) -> Tensor:
    """[B, Q] positions of ``count`` columns from ``start`` on, past the prefix."""
    place = torch.arange(start, start + count, device=inputs.position_offset.device)
    return torch.minimum(place - inputs.position_offset[:, None], inputs.last_position[:, None])


@contextmanager
def _computing(
    switch: AttentionSwitch, weights: DeferredWeights | None, reading: Reading, later: bool
) -> Iterator[None]:
    """What the passes over the prefix, and those after it, run in."""
    with ExitStack() as stack:
        stack.enter_context(switch)
        if not later:
            stack.enter_context(reading())
        if weights is not None:
            stack.enter_context(weights.later() if later else weights.prefix())
        yield
