"""Keys and values of a latent loop that learns, and attention over them that copies nothing.

A cache that grows by ``cat`` keeps every version of itself in the autograd graph: with L thoughts the keys and values
of a prefix would be there L + 2 times, be copied as often, and get their gradients in L + 1 sums. Here the prefix stays
one tensor. Passes after it multiply with it and with the few later positions apart; their gradients for the prefix are
kept as two small factors each, and multiplied once, when the last has come (``_PrefixGate``).

Legend: ``B`` rows, ``H`` heads of queries, ``K`` heads of keys, ``Q`` positions of a pass, ``P`` columns of the prefix,
``S`` positions after it so far, ``E`` entries of a head.
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
from transformers.integrations.sdpa_attention import sdpa_attention_forward

NAME = "latent_loop"
"""Of the attention function, for transformers."""

Stash = list[tuple[Tensor, Tensor, Tensor, Tensor]]
"""Of each pass after the prefix: gradients of scores [B, K, n, P], queries [B, K, n, E], weights [B, K, n, P],
gradients of outputs [B, K, n, E]; n = H / K · Q."""


class LatentLayer(CacheLayerMixin):
    """One layer's keys and values: those of the prefix, and those of the positions after it."""

    is_sliding = False

    def __init__(self, prefix: Sequence[Tensor] = (), later: Sequence[Tensor] = (), stash: Stash | None = None) -> None:
        super().__init__()
        self.prefix, self.later = tuple(prefix), tuple(later)
        self.stash: Stash = [] if stash is None else stash
        self.new: tuple[Tensor, Tensor] | None = None
        """Keys and values of the pass at hand."""

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Nothing is made ahead."""

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Keeps the keys and values [B, K, Q, E] of a pass. Returns those alone: attention finds the others here."""
        if not self.prefix:
            self.new = key_states.contiguous(), value_states.contiguous()
            self.prefix = _PrefixGate.apply(*self.new, self.stash)
        else:
            self.new = key_states, value_states
            pairs = zip(self.later, self.new, strict=True)
            self.later = tuple(torch.cat(pair, dim=2) for pair in pairs) if self.later else self.new
        return self.new

    def get_seq_length(self) -> int:
        """Part of the interface; positions are always given here."""
        return 0

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Part of the interface; no mask is made of it."""
        return query_length, 0

    def get_max_length(self) -> int:
        """No limit."""
        return -1


class LatentCache(Cache):
    """All layers of a batch."""

    def __init__(
        self,
        layers: Sequence[LatentLayer],
        pads: Tensor | None,
        computing: Callable[[bool], AbstractContextManager[Any]],
    ) -> None:
        """
        Args:
            layers: one for each of the model's.
            pads: [B, P] true where the prefix is padded; None where it is not.
            computing: what passes run in, over the prefix (false) and after it; those that are made again, too.
        """
        self.latent_layers, self.pads, self.computing = list(layers), pads, computing
        super().__init__(layers=list(self.latent_layers))

    def holding(self, index: int, parts: Sequence[Tensor]) -> "LatentCache":
        """The same with ``parts`` in layer ``index``: keys and values of the prefix, and of later positions."""
        layers = list(self.latent_layers)
        layers[index] = LatentLayer(parts[:2], parts[2:], layers[index].stash)
        return LatentCache(layers, self.pads, self.computing)

    def forget_later(self) -> None:
        """Back to the prefix: the positions after it are to be computed anew."""
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
    """Output [B, Q, H, E] for queries [B, H, Q, E]; see transformers' ``AttentionInterface``.

    A pass over the prefix takes torch's fused kernel; pads stand on the right, so causal attention needs no mask.
    """
    assert latent_cache is not None, f"{type(module).__name__} does not hand on what its layers are called with"
    layer = latent_cache.latent_layers[module.layer_idx]  # type: ignore[index]
    if not layer.later:
        output, _ = sdpa_attention_forward(module, query, key, value, None, dropout, scaling, is_causal=True)
        return output, None
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    output = _PartAttention.apply(query, *layer.prefix, *layer.later, latent_cache.pads, layer.stash, scale, dropout)
    return output.transpose(1, 2), None


AttentionInterface.register(NAME, prefix_attention)
# All masks follow from the cache.
AttentionMaskInterface.register(NAME, lambda *arguments, **options: None)


class _PrefixGate(torch.autograd.Function):
    """Hands on keys and values; backwards, adds what the passes after the prefix have left in ``stash``.

    Autograd calls ``backward`` once all those passes are through theirs, whatever the order.
    """

    @staticmethod
    def forward(ctx: Any, keys: Tensor, values: Tensor, stash: Stash) -> tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        ctx.stash = stash
        return keys.view_as(keys), values.view_as(values)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_keys: Tensor | None, d_values: Tensor | None) -> tuple[Tensor | None, Tensor | None, None]:
        # Only passes after the prefix read it, and they leave their factors.
        assert (d_keys, d_values) == (None, None)
        if not ctx.stash:
            return None, None, None
        d_scores, queries, weights, d_outputs = (torch.cat(parts, dim=2) for parts in zip(*ctx.stash, strict=True))
        ctx.stash.clear()
        return d_scores.transpose(2, 3) @ queries, weights.transpose(2, 3) @ d_outputs, None


class _PartAttention(torch.autograd.Function):
    """Attention of Q positions to prefix and later positions, which end with these Q."""

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
        shared, width, later = prefix_keys.shape[1], prefix_keys.shape[2], later_keys.shape[2]
        asked = (query * scale).reshape(rows, shared, -1, size)
        scores = torch.cat([asked @ prefix_keys.transpose(2, 3), asked @ later_keys.transpose(2, 3)], dim=-1).float()
        if pads is not None:
            scores[..., :width].masked_fill_(pads[:, None, None], -math.inf)
        if count > 1:
            places = torch.arange(later - count, later, device=query.device)
            future = torch.arange(later, device=query.device) > places[:, None]
            scores[..., width:].masked_fill_(future.repeat(heads // shared, 1), -math.inf)
        weights = scores.softmax(dim=-1).to(query.dtype)
        kept = torch.empty_like(weights).bernoulli_(1 - dropout).div_(1 - dropout) if dropout else None
        used = weights if kept is None else weights * kept
        output = used[..., :width] @ prefix_values + used[..., width:] @ later_values
        ctx.save_for_backward(asked, prefix_keys, prefix_values, later_keys, later_values, weights, kept)
        ctx.stash, ctx.scale, ctx.shape = stash, scale, query.shape
        return output.view(query.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_output: Tensor) -> tuple[Tensor | None, ...]:
        asked, prefix_keys, prefix_values, later_keys, later_values, weights, kept = ctx.saved_tensors
        width = prefix_keys.shape[2]
        d_output = d_output.reshape(asked.shape)
        used = weights if kept is None else weights * kept
        parts = [d_output @ prefix_values.transpose(2, 3), d_output @ later_values.transpose(2, 3)]
        d_weights = torch.cat(parts, dim=-1)
        if kept is not None:
            d_weights = d_weights * kept
        exact = weights.float()
        d_scores = exact * (d_weights.float() - (d_weights * exact).sum(dim=-1, keepdim=True))
        d_scores = d_scores.to(asked.dtype)
        d_prefix, d_later = d_scores[..., :width], d_scores[..., width:]
        ctx.stash.append((d_prefix, asked, used[..., :width], d_output))
        d_query = (d_prefix @ prefix_keys + d_later @ later_keys).mul_(ctx.scale).view(ctx.shape)
        d_keys, d_values = d_later.transpose(2, 3) @ asked, used[..., width:].transpose(2, 3) @ d_output
        return d_query, None, None, d_keys, d_values, None, None, None, None
