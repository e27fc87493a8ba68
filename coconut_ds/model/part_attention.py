"""Attention of a few positions to a prefix that never changes and to the positions after it, with its gradients.

In the backward pass, a pass does not compute its contribution to the gradient of the prefix; it stores the small
factors of that product in the ``Stash`` of its layer. When all passes have stored theirs, one product over all of them
gives the gradient (``PrefixGate``).

This is the implementation in plain PyTorch, for any device; ``triton_attention.py`` computes the same on CUDA.

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
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


class Stash:
    """What the passes after the prefix leave for the gradient of the prefix of one layer."""

    def __init__(self) -> None:
        self._combine: Callable[..., tuple[Tensor, Tensor]] | None = None
        self._factors: list[tuple[Tensor, ...]] = []

    def add(self, combine: Callable[..., tuple[Tensor, Tensor]], factors: tuple[Tensor, ...]) -> None:
        """Stores the factors of one pass.

        Args:
            combine: computes the gradients of the prefix from its keys, its values, and the factors of all passes,
                concatenated along dimension 2. All passes of a batch give the same function.
            factors: any number of tensors, the same for each pass.
        """
        self._combine = combine
        self._factors.append(factors)

    def gradients(self, keys: Tensor, values: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """The gradients of the prefix's keys and values [B, K, P, E]; None if no pass was stored. Empties the stash."""
        if self._combine is None or not self._factors:
            return None, None
        factors = [torch.cat(parts, dim=2) for parts in zip(*self._factors, strict=True)]
        self._factors.clear()
        return self._combine(keys, values, *factors)


class PrefixGate(torch.autograd.Function):
    """The identity on the keys and values of the prefix; its backward computes their gradients from ``stash``.

    The passes after the prefix read the outputs of this function, so autograd calls its ``backward`` after the
    ``backward`` of all of them. By then each has added its factors to ``stash``, in any order.
    """

    @staticmethod
    def forward(ctx: Any, keys: Tensor, values: Tensor, stash: Stash) -> tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        ctx.stash = stash
        ctx.save_for_backward(keys, values)
        return keys.view_as(keys), values.view_as(values)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_keys: Tensor | None, d_values: Tensor | None) -> tuple[Tensor | None, Tensor | None, None]:
        # Only the attention of later passes reads the outputs; it returns no gradient for them, but adds to the stash.
        assert (d_keys, d_values) == (None, None)
        return *ctx.stash.gradients(*ctx.saved_tensors), None


class PartAttention(torch.autograd.Function):
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
        # [B·K, columns, E] and [B·K, n, E]: the queries that share a key/value head form one matrix.
        keys, values, own_keys, own_values = (
            each.flatten(0, 1) for each in (prefix_keys, prefix_values, later_keys, later_values)
        )
        scaled = (query * scale).reshape(rows * kv_heads, -1, size)
        scores = _joined(_scores(scaled, keys), torch.bmm(scaled, own_keys.transpose(1, 2)))
        if pads is not None:
            scores.unflatten(0, (rows, kv_heads))[..., :width].masked_fill_(pads[:, None, None], -math.inf)
        if count > 1:
            places = torch.arange(later - count, later, device=query.device)
            future = torch.arange(later, device=query.device) > places[:, None]
            scores[..., width:].masked_fill_(future.repeat(heads // kv_heads, 1), -math.inf)
        weights = _parts(scores.softmax(dim=-1), width, query.dtype)
        kept = None
        if dropout:
            drawn = torch.empty_like(scores).bernoulli_(1 - dropout).div_(1 - dropout)
            kept = _parts(drawn, width, query.dtype)
        used, own = weights if kept is None else _products(weights, kept)
        output = torch.bmm(used, values) + torch.bmm(own, own_values)
        ctx.save_for_backward(scaled, keys, values, own_keys, own_values, *weights, *(kept or ()))
        ctx.stash, ctx.scale, ctx.shape = stash, scale, query.shape
        return output.view(query.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_output: Tensor) -> tuple[Tensor | None, ...]:
        scaled, keys, values, own_keys, own_values, *parts = ctx.saved_tensors
        weights, kept = parts[:2], parts[2:]
        d_output = d_output.reshape(scaled.shape)
        d_parts = _scores(d_output, values), torch.bmm(d_output, own_values.transpose(1, 2))
        used, own = _products(weights, kept) if kept else weights
        d_weights = _joined(*(_products(d_parts, kept) if kept else d_parts))
        exact = _joined(*weights)
        d_scores = exact * (d_weights - (d_weights * exact).sum(dim=-1, keepdim=True))
        d_prefix, d_later = _parts(d_scores, keys.shape[1], scaled.dtype)
        shared = ctx.shape[0], -1
        factors = tuple(each.unflatten(0, shared) for each in (d_prefix, scaled, used, d_output))
        ctx.stash.add(_prefix_gradients, factors)
        d_query = (torch.bmm(d_prefix, keys) + torch.bmm(d_later, own_keys)).mul_(ctx.scale).view(ctx.shape)
        d_keys, d_values = torch.bmm(d_later.transpose(1, 2), scaled), torch.bmm(own.transpose(1, 2), d_output)
        return d_query, None, None, d_keys.unflatten(0, shared), d_values.unflatten(0, shared), None, None, None, None


def _scores(rows: Tensor, columns: Tensor) -> Tensor:
    """Products [B·K, n, P] of each of the rows [B·K, n, E] with each of the columns [B·K, P, E]."""
    if rows.shape[1] > 1 or rows.dtype == torch.float32:
        return torch.bmm(rows, columns.transpose(1, 2))
    # oneDNN would first transpose the columns, which takes as long as the product. In fp32 it does not, and the other
    # order of the factors would round differently.
    return torch.bmm(columns, rows.transpose(1, 2)).transpose(1, 2)


def _joined(prefix: Tensor, later: Tensor) -> Tensor:
    """Numbers for all columns [..., P + S] in fp32, from those of the prefix and of the later positions."""
    width = prefix.shape[-1]
    whole = prefix.new_empty(*prefix.shape[:-1], width + later.shape[-1], dtype=torch.float32)
    whole[..., :width], whole[..., width:] = prefix, later
    return whole


def _parts(whole: Tensor, width: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The inverse of ``_joined``, in ``dtype``. Both parts are contiguous: products with a slice are slow in bf16."""
    prefix, later = whole[..., :width].to(dtype).contiguous(), whole[..., width:].to(dtype).contiguous()
    return prefix, later


def _products(some: Sequence[Tensor], others: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Elementwise products of two pairs."""
    return some[0] * others[0], some[1] * others[1]


def _prefix_gradients(
    keys: Tensor, values: Tensor, d_scores: Tensor, queries: Tensor, weights: Tensor, d_outputs: Tensor
) -> tuple[Tensor, Tensor]:
    """The gradients of the prefix, from the factors of all passes.

    The factors are gradients of the scores [B, K, n, P], scaled queries [B, K, n, E], attention weights [B, K, n, P]
    and gradients of the outputs [B, K, n, E], with n the sum over the passes.
    """
    return d_scores.transpose(2, 3) @ queries, weights.transpose(2, 3) @ d_outputs
