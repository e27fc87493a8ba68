"""The forward passes of the latent loop over one batch: one over the prefix, then passes over later positions.

All passes of a batch share one key/value cache. There are two implementations, whose results agree up to rounding:

* ``LatentPasses`` is the fast one for training. It uses this project's own attention, which never copies the prefix
  (``latent_attention.py``), and on a CPU it sums the gradients of each weight over all passes in one product
  (``deferred.py``). It needs a model that was loaded with ``sdpa`` and whose layers accept an attention function.
* ``PlainPasses`` uses transformers' cache and the attention that the model was loaded with: flash attention, eager, or
  layers that do not show it the cache.

Shapes:
    B  rows (sequences) in the batch
    P  columns of the prefix
    Q  positions in one pass
    D  hidden size
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from coconut_ds.model.attention import AttentionSwitch, FullAttention, takes_attention
from coconut_ds.model.collate import LatentInputs
from coconut_ds.model.deferred import DeferredWeights
from coconut_ds.model.latent_attention import NAME, LatentCache, LatentLayer
from coconut_ds.model.trial import hides_cache

Reading = Callable[[], AbstractContextManager[None]]
"""Makes the context in which the pass over the prefix runs; see ``LastLayer.only``."""


class Passes(Protocol):
    """What the latent loop needs: forward passes that remember the positions of earlier passes."""

    def prefix(self, embeds: Tensor) -> Tensor:
        """Encodes the prefix. Must be the first pass.

        Returns states [B, P, D] for embeddings [B, P, D]. The prefix is padded on its right, so causal attention keeps
        real positions from attending to padding, and no mask is needed.
        """

    def later(self, embeds: Tensor, start: int, again: bool = False) -> Tensor:
        """Encodes Q columns from column ``start`` on. Returns states [B, Q, D] for embeddings [B, Q, D].

        With ``again`` the cache is first cut back to the prefix, so that these columns replace those of earlier calls.
        """


def passes_of(
    model: PreTrainedModel,
    inputs: LatentInputs,
    num_layers: int,
    reading: Reading,
    defer_gradients: bool = False,
    fused_attention: bool = False,
    only_ends: bool = False,
) -> Passes:
    """The fast passes where the model supports them, else the plain ones.

    Args:
        model: the language model.
        inputs: the batch.
        num_layers: number of layers of the model.
        reading: makes the context of the pass over the prefix.
        defer_gradients: whether to defer the gradients of weights; ``PlainPasses`` never does.
        fused_attention: whether ``LatentPasses`` computes the attention of later passes with Triton kernels.
        only_ends: whether each row's last state is the only one of the prefix that is read; then ``LatentPasses``
            attends in the last layer for these only.
    """
    if takes_attention(model) and model.config._attn_implementation == "sdpa" and not hides_cache(model):
        return LatentPasses(model, inputs, num_layers, reading, defer_gradients, fused_attention, only_ends)
    return PlainPasses(model, inputs, reading)


class LatentPasses:
    """Passes for training, which copy and mask as little as possible (see the module's docstring)."""

    def __init__(
        self,
        model: PreTrainedModel,
        inputs: LatentInputs,
        num_layers: int,
        reading: Reading,
        defer_gradients: bool,
        fused_attention: bool,
        only_ends: bool,
    ) -> None:
        self._model, self._inputs = model, inputs
        mask, width = inputs.attention_mask, inputs.prefix_ids.shape[1]
        pads = None if mask is None else mask[:, :width] == 0
        weights = DeferredWeights() if defer_gradients else None
        # A partial, not a bound method: a reference cycle would keep the batch's tensors alive until Python's garbage
        # collector runs.
        self._computing = partial(_computing, AttentionSwitch(model, NAME), weights, reading)
        layers = [LatentLayer() for _ in range(num_layers)]
        ends = inputs.prefix_last if only_ends else None
        self._cache = LatentCache(layers, pads, self._computing, fused_attention, ends)

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
    """Passes with transformers' own cache, attention and masks."""

    def __init__(self, model: PreTrainedModel, inputs: LatentInputs, reading: Reading) -> None:
        self._model, self._inputs, self._reading = model, inputs, reading
        # Without the configuration: layers with a window would keep only its last columns, padding included.
        self._cache = DynamicCache()
        self._prefix: list[tuple[Tensor, Tensor]] = []
        self._full_attention = FullAttention(model)

    @property
    def _layers(self) -> list[Any]:
        return list(self._cache.layers)

    def prefix(self, embeds: Tensor) -> Tensor:
        """See ``Passes``."""
        # An empty cache is passed in from the start: without any cache, transformers would look for packed sequences in
        # the position ids.
        with self._reading(), self._full_attention:
            states = last_hidden_states(self._model, embeds, self._cache)
        self._prefix = [(layer.keys, layer.values) for layer in self._layers]
        return states

    def later(self, embeds: Tensor, start: int, again: bool = False) -> Tensor:
        """See ``Passes``."""
        if again:
            self._cache = DynamicCache(ddp_cache_data=self._prefix)
        mask, count = self._inputs.attention_mask, embeds.shape[1]
        mask = None if mask is None else mask[:, : start + count]
        with self._full_attention:
            return last_hidden_states(self._model, embeds, self._cache, mask, positions_of(self._inputs, start, count))


def whole_states(
    model: PreTrainedModel, embeds: Tensor, num_layers: int, first_position: int = 0, plain: bool = False
) -> Tensor:
    """Encodes whole sequences in one pass. Returns states [B, Q, D] for embeddings [B, Q, D].

    Sequences may be padded on their right. No padding mask is needed, since attention is causal.

    Args:
        model: the language model.
        embeds: the input embeddings.
        num_layers: number of layers of the model.
        first_position: position id of the first column.
        plain: whether to use transformers' attention in any case (``trial.hides_cache``).
    """
    positions = torch.arange(first_position, first_position + embeds.shape[1], device=embeds.device)[None]
    if plain or not takes_attention(model) or model.config._attn_implementation != "sdpa":
        with FullAttention(model):
            # See ``PlainPasses.prefix`` for the reason why there is a cache.
            return last_hidden_states(model, embeds, DynamicCache(), None, positions)
    computing = partial(_computing, AttentionSwitch(model, NAME), None, nullcontext)
    cache = LatentCache([LatentLayer() for _ in range(num_layers)], None, computing)
    with computing(False):
        return last_hidden_states(model, embeds, cache, None, positions, latent_cache=cache)


def last_hidden_states(
    model: PreTrainedModel,
    embeds: Tensor,
    cache: Any,
    attention_mask: Tensor | None = None,
    position_ids: Tensor | None = None,
    **more: Any,
) -> Tensor:
    """Runs the model without its head, which appends Q positions to the cache.

    Returns hidden states [B, Q, D] after the final norm for embeddings [B, Q, D]. ``more`` is passed on to the model.
    """
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
    """Position ids [B, Q] of ``count`` = Q columns after the prefix, from column ``start`` on.

    A column's position is its index less the row's padding. Padding at the end of a row repeats the last position.
    """
    place = torch.arange(start, start + count, device=inputs.position_offset.device)
    return torch.minimum(place - inputs.position_offset[:, None], inputs.last_position[:, None])


@contextmanager
def _computing(
    switch: AttentionSwitch, weights: DeferredWeights | None, reading: Reading, later: bool
) -> Iterator[None]:
    """The context of one pass: over the prefix (``later`` false) or over positions after it (true)."""
    with ExitStack() as stack:
        stack.enter_context(switch)
        if not later:
            stack.enter_context(reading())
        if weights is not None:
            stack.enter_context(weights.later() if later else weights.prefix())
        yield
