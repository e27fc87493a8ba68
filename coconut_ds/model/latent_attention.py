"""The key/value cache of the latent loop in training, and attention over it that never copies the prefix.

A cache that grows by ``torch.cat`` keeps every version of itself in the autograd graph: with L thoughts, the keys and
values of the prefix would be stored L + 2 times, be copied as many times, and accumulate their gradients in L + 1 sums.
Here the prefix is one tensor that never changes. Each pass after it multiplies its queries with the prefix and with the
few later positions separately. In the backward pass, a pass does not compute its contribution to the gradient of the
prefix; it stores the two small factors of that product. When all passes have stored theirs, one product over all of
them gives the gradient (``_PrefixGate``).

Shapes:
    B  rows (sequences) in the batch
    H  query heads
    K  key/value heads
    Q  positions in one pass
    P  columns of the prefix
    S  positions after the prefix so far, including those of the current pass
    E  size of a head
    n  H / K · Q, the queries of one pass that share a key/value head
"""

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from transformers import AttentionInterface, AttentionMaskInterface, Cache
from transformers.cache_utils import CacheLayerMixin

from coconut_ds.errors import ModelError
from coconut_ds.model.attention import fused_attention

NAME = "latent_loop"
"""The name under which transformers knows ``prefix_attention``."""

Stash = list[tuple[Tensor, Tensor, Tensor, Tensor]]
"""For each pass after the prefix, in the order of their backward passes: gradients of the scores [B, K, n, P], scaled
queries [B, K, n, E], attention weights [B, K, n, P], gradients of the outputs [B, K, n, E]."""


class LatentLayer(CacheLayerMixin):
    """The keys and values of one layer: those of the prefix, and those of the positions after it."""

    is_sliding = False

    def __init__(self, prefix: Sequence[Tensor] = (), later: Sequence[Tensor] = (), stash: Stash | None = None) -> None:
        super().__init__()
        self.prefix, self.later = tuple(prefix), tuple(later)
        self.stash: Stash = [] if stash is None else stash
        self.new: tuple[Tensor, Tensor] | None = None
        """Keys and values of the latest pass."""

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Part of transformers' interface. Does nothing: no memory is allocated in advance."""

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Stores the keys and values [B, K, Q, E] of a pass; the first pass is the prefix.

        Returns only these. ``prefix_attention`` reads those of earlier passes from this object.
        """
        if not self.prefix:
            self.new = key_states.contiguous(), value_states.contiguous()
            self.prefix = _PrefixGate.apply(*self.new, self.stash)
        else:
            self.new = key_states, value_states
            pairs = zip(self.later, self.new, strict=True)
            self.later = tuple(torch.cat(pair, dim=2) for pair in pairs) if self.later else self.new
        return self.new

    def get_seq_length(self) -> int:
        """Part of transformers' interface. Not used: the latent loop always passes position ids after the prefix."""
        return 0

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Part of transformers' interface. Not used: no mask is built for this attention."""
        return query_length, 0

    def get_max_length(self) -> int:
        """Part of transformers' interface: -1, since the length is not limited."""
        return -1


class LatentCache(Cache):
    """The keys and values of all layers for one batch."""

    def __init__(
        self,
        layers: Sequence[LatentLayer],
        pads: Tensor | None,
        pass_context: Callable[[bool], AbstractContextManager[Any]],
    ) -> None:
        """
        Args:
            layers: one for each layer of the model.
            pads: [B, P] true where the prefix is padding; None if it has no padding.
            pass_context: makes the context that a pass runs in, given whether it comes after the prefix. Activation
                checkpointing enters it again when it recomputes a layer.
        """
        self.latent_layers, self.pads, self.pass_context = list(layers), pads, pass_context
        super().__init__(layers=list(self.latent_layers))

    def with_layer(self, index: int, parts: Sequence[Tensor]) -> "LatentCache":
        """A copy whose layer ``index`` holds ``parts``: keys and values of the prefix, then of later positions.

        ``parts`` has no, two or four tensors. The copy shares the stash of the original.
        """
        layers = list(self.latent_layers)
        layers[index] = LatentLayer(parts[:2], parts[2:], layers[index].stash)
        return LatentCache(layers, self.pads, self.pass_context)

    def forget_later(self) -> None:
        """Drops all positions after the prefix."""
        for layer in self.latent_layers:
            layer.later = ()


def prefix_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    latent_cache: LatentCache | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """The attention function of one layer, for transformers' ``AttentionInterface``.

    The pass over the prefix uses torch's fused kernel with causal attention; it needs no mask, since the padding is on
    the right. Later passes attend to all real columns of the prefix and, causally, to the later positions.

    Returns the output [B, Q, H, E] for queries [B, H, Q, E], and None for the attention weights.
    """
    if latent_cache is None:
        raise ModelError(
            f"{type(module).__name__}: its model does not pass keyword arguments on to its layers; set "
            "model.attn_implementation=eager"
        )
    layer = latent_cache.latent_layers[module.layer_idx]  # type: ignore[index]
    if not layer.later:
        return fused_attention(module, query, key, value, None, dropout, scaling, is_causal=True), None
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    output = _PartAttention.apply(query, *layer.prefix, *layer.later, latent_cache.pads, layer.stash, scale, dropout)
    return output.transpose(1, 2).contiguous(), None


AttentionInterface.register(NAME, prefix_attention)
# transformers builds no mask for this attention: the cache knows the padding.
AttentionMaskInterface.register(NAME, lambda *arguments, **options: None)


class _PrefixGate(torch.autograd.Function):
    """The identity on the keys and values of the prefix; its backward computes their gradients from ``stash``.

    The passes after the prefix read the outputs of this function, so autograd calls its ``backward`` after the
    ``backward`` of all of them. By then each has added its factors to ``stash``, in any order.
    """

    @staticmethod
    def forward(ctx: Any, keys: Tensor, values: Tensor, stash: Stash) -> tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        ctx.stash = stash
        return keys.view_as(keys), values.view_as(values)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_keys: Tensor | None, d_values: Tensor | None) -> tuple[Tensor | None, Tensor | None, None]:
        # Only ``_PartAttention`` reads the outputs, and it returns no gradient for them, but adds to the stash.
        assert (d_keys, d_values) == (None, None)
        if not ctx.stash:
            return None, None, None
        d_scores, queries, weights, d_outputs = (torch.cat(parts, dim=2) for parts in zip(*ctx.stash, strict=True))
        ctx.stash.clear()
        return d_scores.transpose(2, 3) @ queries, weights.transpose(2, 3) @ d_outputs, None


class _PartAttention(torch.autograd.Function):
    """Attention of Q positions to the prefix and to the S later positions, the last Q of which are these positions."""

    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        prefix_keys: Tensor,
        prefix_values: Tensor,
        later_keys: Tensor,
        later_values: Tensor,
        pads: Tensor | None,
        stash: Stash,
        scale: float,
        dropout: float,
    ) -> Tensor:
        rows, heads, count, size = query.shape
        kv_heads, width, later = prefix_keys.shape[1], prefix_keys.shape[2], later_keys.shape[2]
        # [B, K, n, E]: the queries that share a key/value head form one matrix.
        scaled = (query * scale).reshape(rows, kv_heads, -1, size)
        scores = torch.cat([scaled @ prefix_keys.transpose(2, 3), scaled @ later_keys.transpose(2, 3)], dim=-1).float()
        if pads is not None:
            scores[..., :width].masked_fill_(pads[:, None, None], -math.inf)
        if count > 1:
            places = torch.arange(later - count, later, device=query.device)
            future = torch.arange(later, device=query.device) > places[:, None]
            scores[..., width:].masked_fill_(future.repeat(heads // kv_heads, 1), -math.inf)
        weights = scores.softmax(dim=-1).to(query.dtype)
        kept = torch.empty_like(weights).bernoulli_(1 - dropout).div_(1 - dropout) if dropout else None
        used = weights if kept is None else weights * kept
        output = used[..., :width] @ prefix_values + used[..., width:] @ later_values
        ctx.save_for_backward(scaled, prefix_keys, prefix_values, later_keys, later_values, weights, kept)
        ctx.stash, ctx.scale, ctx.shape = stash, scale, query.shape
        return output.view(query.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_output: Tensor) -> tuple[Tensor | None, ...]:
        scaled, prefix_keys, prefix_values, later_keys, later_values, weights, kept = ctx.saved_tensors
        width = prefix_keys.shape[2]
        d_output = d_output.reshape(scaled.shape)
        used = weights if kept is None else weights * kept
        parts = [d_output @ prefix_values.transpose(2, 3), d_output @ later_values.transpose(2, 3)]
        d_weights = torch.cat(parts, dim=-1)
        if kept is not None:
            d_weights = d_weights * kept
        exact = weights.float()
        d_scores = exact * (d_weights.float() - (d_weights * exact).sum(dim=-1, keepdim=True))
        d_scores = d_scores.to(scaled.dtype)
        d_prefix, d_later = d_scores[..., :width], d_scores[..., width:]
        ctx.stash.append((d_prefix, scaled, used[..., :width], d_output))
        d_query = (d_prefix @ prefix_keys + d_later @ later_keys).mul_(ctx.scale).view(ctx.shape)
        d_keys, d_values = d_later.transpose(2, 3) @ scaled, used[..., width:].transpose(2, 3) @ d_output
        return d_query, None, None, d_keys, d_values, None, None, None, None
