"""The key/value cache of the latent loop in training, and attention over it that never copies the prefix.

A cache that grows by ``torch.cat`` keeps every version of itself in the autograd graph: with L thoughts, the keys and
values of the prefix would be stored L + 2 times, be copied as many times, and accumulate their gradients in L + 1 sums.
Here the prefix is one tensor that never changes. Each pass after it multiplies its queries with the prefix and with the
few later positions separately (``part_attention.py``, or ``triton_attention.py``).

Shapes: see ``part_attention.py``.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, Cache
from transformers.cache_utils import CacheLayerMixin

from coconut_ds.errors import ModelError
from coconut_ds.model.attention import fused_attention
from coconut_ds.model.part_attention import PartAttention, PrefixGate, Stash

NAME = "latent_loop"
"""The name under which transformers knows ``prefix_attention``."""


class LatentLayer(CacheLayerMixin):
    """The keys and values of one layer: those of the prefix, and those of the positions after it."""

    is_sliding = False

    def __init__(self, prefix: Sequence[Tensor] = (), later: Sequence[Tensor] = (), stash: Stash | None = None) -> None:
        super().__init__()
        self.prefix, self.later = tuple(prefix), tuple(later)
        self.stash = Stash() if stash is None else stash
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
            self.prefix = PrefixGate.apply(*self.new, self.stash)
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
        fused: bool = False,
        ends: Tensor | None = None,
    ) -> None:
        """
        Args:
            layers: one for each layer of the model.
            pads: [B, P] true where the prefix is padding; None if it has no padding.
            pass_context: makes the context that a pass runs in, given whether it comes after the prefix. Activation
                checkpointing enters it again when it recomputes a layer.
            fused: whether the Triton kernels compute the attention of later passes.
            ends: [B] each row's last real column of the prefix, if these are the only columns of the prefix whose
                states after the last layer are read; else None.
        """
        self.latent_layers, self.pads, self.ends = list(layers), pads, ends
        self.pass_context, self.fused = pass_context, fused
        super().__init__(layers=list(self.latent_layers))

    def with_layer(self, index: int, parts: Sequence[Tensor]) -> "LatentCache":
        """A copy whose layer ``index`` holds ``parts``: keys and values of the prefix, then of later positions.

        ``parts`` has no, two or four tensors. The copy shares the stash of the original.
        """
        layers = list(self.latent_layers)
        layers[index] = LatentLayer(parts[:2], parts[2:], layers[index].stash)
        return LatentCache(layers, self.pads, self.pass_context, self.fused, self.ends)

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
    the right. Later passes attend to all real columns of the prefix and, causally, to the later positions. So does the
    end of each row in the last layer of the prefix, if no other state is read there (``LatentCache.ends``).

    Returns the output [B, Q, H, E] for queries [B, H, Q, E], and None for the attention weights.
    """
    if latent_cache is None:
        raise ModelError(
            f"{type(module).__name__}: its model does not pass keyword arguments on to its layers; set "
            "model.attn_implementation=eager"
        )
    index: int = module.layer_idx  # type: ignore[assignment]
    layer, ends = latent_cache.latent_layers[index], latent_cache.ends
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    attend = partial(_part_attention, latent_cache, layer, dropout, scale)
    if not layer.later:
        if ends is not None and index == len(latent_cache.latent_layers) - 1:
            return _only_at_ends(attend, query, key, value, ends), None
        return fused_attention(module, query, key, value, None, dropout, scaling, is_causal=True), None
    return attend(query, layer.later).transpose(1, 2).contiguous(), None


def _only_at_ends(
    attend: Callable[[Tensor, Sequence[Tensor]], Tensor], query: Tensor, key: Tensor, value: Tensor, ends: Tensor
) -> Tensor:
    """Attention [B, P, H, E] of the prefix to itself at column ``ends`` [B] of each row, and zeros elsewhere."""
    rows = torch.arange(len(ends), device=ends.device)
    none_later = key.detach()[:, :, :0], value.detach()[:, :, :0]
    output = attend(query[rows, :, ends].unsqueeze(2), none_later)
    whole = query.new_zeros(len(query), query.shape[2], *query.shape[1::2])
    return whole.index_put((rows, ends), output.squeeze(2))


def _part_attention(
    cache: LatentCache, layer: LatentLayer, dropout: float, scale: float, query: Tensor, later: Sequence[Tensor]
) -> Tensor:
    """Attention [B, H, Q, E] of queries [B, H, Q, E] to the prefix of a layer and to keys and values after it."""
    parts = query, *layer.prefix, *later, cache.pads, layer.stash, scale
    if cache.fused and not dropout:
        # Imports Triton, which is there only on machines with CUDA.
        from coconut_ds.model.triton_attention import TritonPartAttention

        fused: Tensor = TritonPartAttention.apply(*parts)
        return fused
    plain: Tensor = PartAttention.apply(*parts, dropout)
    return plain


AttentionInterface.register(NAME, prefix_attention)
# transformers builds no mask for this attention: the cache knows the padding.
AttentionMaskInterface.register(NAME, lambda *arguments, **options: None)
