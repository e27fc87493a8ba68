"""The part attention in Triton: the same function as ``part_attention.py``, in one kernel forwards and three backwards.

It stores no scores: the backward pass computes them again from the queries and from the logarithms of the sums of
exponentials, block by block. A pass adds four factors as small as its queries to the stash of its layer, and the
gradient of the prefix is one kernel over the factors of all passes. See "FlashAttention-2" (arXiv 2307.08691) for the
method.

Shapes: see ``part_attention.py``.
"""

from functools import partial
from typing import Any

import torch
import triton
from torch import Tensor
from torch.autograd.function import once_differentiable

from coconut_ds.model.attention_kernels import blocks, forward_kernel, key_gradient_kernel, query_gradient_kernel
from coconut_ds.model.part_attention import Stash


class TritonPartAttention(torch.autograd.Function):
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
    ) -> Tensor:
        query, later_keys, later_values = _rows(query), later_keys.contiguous(), later_values.contiguous()
        rows, heads, count, size = query.shape
        # In the order in which the layer goes on to read it.
        output = query.new_empty(rows, count, heads, size).transpose(1, 2)
        log_sums = query.new_empty(rows, heads, count, dtype=torch.float32)
        lengths = prefix_keys.shape[2], later_keys.shape[2]
        forward_kernel[_grid(query, prefix_keys)](
            *(query, prefix_keys, prefix_values, later_keys, later_values, _bytes(pads, query), output, log_sums),
            *(*query.stride()[:3], *output.stride()[:3]),
            *(scale, *_heads(query, prefix_keys), count, *lengths, size),
            pads is not None,
            **_blocks(query, prefix_keys),
        )
        ctx.save_for_backward(query, prefix_keys, prefix_values, later_keys, later_values, output, log_sums)
        ctx.pads, ctx.stash, ctx.scale = pads, stash, scale
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_output: Tensor) -> tuple[Tensor | None, ...]:
        query, prefix_keys, prefix_values, later_keys, later_values, output, log_sums = ctx.saved_tensors
        pads, scale, d_output = ctx.pads, ctx.scale, _rows(d_output)
        rows, heads, count, size = query.shape
        d_query = query.new_empty(rows, count, heads, size).transpose(1, 2)
        deltas = torch.empty_like(log_sums)
        query_gradient_kernel[_grid(query, prefix_keys)](
            *(query, prefix_keys, prefix_values, later_keys, later_values, _bytes(pads, query), output, log_sums),
            *(d_output, d_query, deltas),
            *(stride for each in (query, output, d_output, d_query) for stride in each.stride()[:3]),
            *(scale, *_heads(query, prefix_keys), count, prefix_keys.shape[2], later_keys.shape[2], size),
            pads is not None,
            **_blocks(query, prefix_keys),
        )
        factors = query, d_output, log_sums, deltas
        ctx.stash.add(partial(_key_gradients, pads=pads, scale=scale, is_later=False), factors)
        d_keys, d_values = _key_gradients(later_keys, later_values, *factors, None, scale, is_later=True)
        return d_query, None, None, d_keys, d_values, None, None, None


def _key_gradients(
    keys: Tensor,
    values: Tensor,
    query: Tensor,
    d_output: Tensor,
    log_sums: Tensor,
    deltas: Tensor,
    pads: Tensor | None,
    scale: float,
    is_later: bool,
) -> tuple[Tensor, Tensor]:
    """Gradients of the keys and values, of later positions or of the prefix, from the factors of one or more passes."""
    d_keys, d_values = torch.empty_like(keys), torch.empty_like(values)
    rows, heads, length, size = keys.shape
    sizes = _blocks(query, keys)
    key_gradient_kernel[(rows * heads, triton.cdiv(length, sizes["COLUMNS"]))](
        *(query, keys, values, _bytes(pads, query), log_sums, d_output, deltas, d_keys, d_values),
        *(*query.stride()[:3], *d_output.stride()[:3]),
        *(scale, *_heads(query, keys), query.shape[2], length, size),
        *(is_later, pads is not None),
        **sizes,
    )
    return d_keys, d_values


def _rows(tensor: Tensor) -> Tensor:
    """A tensor [B, H, Q, E] whose rows of E numbers are contiguous, as the kernels read them."""
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()


def _bytes(pads: Tensor | None, other: Tensor) -> Tensor:
    """``pads`` [B, P] as bytes; if there are none, any tensor, which the kernels do not read."""
    return other if pads is None else pads.contiguous().view(torch.uint8)


def _heads(query: Tensor, keys: Tensor) -> tuple[int, int]:
    """K, and the number of query heads that share a key head."""
    return keys.shape[1], query.shape[1] // keys.shape[1]


def _blocks(query: Tensor, keys: Tensor) -> dict[str, int]:
    """See ``attention_kernels.blocks``."""
    return blocks(_heads(query, keys)[1] * query.shape[2], query.shape[3], query.dtype == torch.float32)


def _grid(query: Tensor, keys: Tensor) -> tuple[int, int]:
    """Programs of a kernel over queries: pairs of a row and a key head, and blocks of the queries that share it."""
    kv_heads, groups = _heads(query, keys)
    return len(query) * kv_heads, triton.cdiv(groups * query.shape[2], _blocks(query, keys)["ROWS"])
