"""The attention function of the thinking engine, which is registered with transformers as ``thinking_engine``.

* Passes over one position compute two batched products of the queries with the cache, in place, for each span of rows
  (``spans.py``). torch's fused CPU kernel is made for many queries and takes three times as long here in bf16; it would
  also copy the keys and values that several query heads share.
* Passes over whole prompts in bf16 on a CPU go block by block, which is a third faster than the fused kernel.
* All other passes use torch's fused kernel.

Shapes:
    R  rows in one pass
    H  query heads
    K  key/value heads
    Q  positions in one pass
    E  size of a head
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.masking_utils import sdpa_mask

from coconut_ds.errors import ModelError
from coconut_ds.generation.spans import current_spans
from coconut_ds.model.attention import AttentionSwitch, fused_attention, takes_attention

NAME = "thinking_engine"
"""The name under which transformers knows ``slot_attention``."""
BLOCK = 128
"""Number of queries in one block of ``_causal_blocks``."""


def slot_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """The attention function of one layer, for transformers' ``AttentionInterface``.

    With one query, the mask is added to the scores and has their type: 0, or -inf for a hidden position. Otherwise it
    is boolean, or None for causal attention.

    Returns the output [R, Q, H, E] for queries [R, H, Q, E], and None for the attention weights.
    """
    if query.shape[2] > 1 and attention_mask is None and query.dtype == torch.bfloat16 and query.device.type == "cpu":
        return _causal_blocks(query, key, value, scaling).transpose(1, 2).contiguous(), None
    if query.shape[2] > 1 or attention_mask is None:
        return fused_attention(module, query, key, value, attention_mask, dropout, scaling, **kwargs), None
    scaled = query * (query.shape[3] ** -0.5 if scaling is None else scaling)
    spans = current_spans()
    if spans is None:
        return _one_position(scaled, key, value, attention_mask), None
    parts = []
    for first, end, columns in spans:
        keys, values = key[first:end, :, :columns], value[first:end, :, :columns]
        parts.append(_one_position(scaled[first:end], keys, values, attention_mask[first:end, ..., :columns]))
    return torch.cat(parts), None


def _one_position(scaled: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
    """Attention of one query of each row, divided by the root of its size, with the mask added to the scores: output
    [R, 1, H, E]."""
    rows, heads, _, size = scaled.shape
    kv_heads = key.shape[1]
    scaled, keys = scaled.reshape(rows * kv_heads, heads // kv_heads, size), key.flatten(0, 1)
    if key.dtype == torch.bfloat16:
        # In bf16, a matrix times a vector is three times as fast as a vector times a matrix; in fp32 it takes twice as
        # long.
        scores = torch.bmm(keys, scaled.transpose(1, 2)).transpose(1, 2)
    else:
        scores = torch.bmm(scaled, keys.transpose(1, 2))
    # In bf16, too, the kernel of the softmax computes in fp32 and rounds its result.
    weights = (scores.unflatten(0, (rows, kv_heads)) + mask).softmax(dim=-1)
    output = torch.bmm(weights.to(value.dtype).flatten(0, 1), value.flatten(0, 1))
    return output.view(rows, 1, heads, -1)


def _causal_blocks(query: Tensor, key: Tensor, value: Tensor, scaling: float | None) -> Tensor:
    """Causal attention without a cache: output [R, H, Q, E] for queries [R, H, Q, E].

    Each block of queries is multiplied only with the keys up to its end, which skips most of the masked scores.
    """
    rows, heads, length, size = query.shape
    kv_heads = key.shape[1]
    query = (query * (size**-0.5 if scaling is None else scaling)).unflatten(1, (kv_heads, heads // kv_heads))
    key, value = key.unsqueeze(2).transpose(-1, -2), value.unsqueeze(2)
    output = value.new_empty(rows, kv_heads, heads // kv_heads, length, value.shape[-1])
    later = torch.full((BLOCK, BLOCK), float("-inf")).triu(1)
    for start in range(0, length, BLOCK):
        end = min(start + BLOCK, length)
        scores = torch.matmul(query[..., start:end, :], key[..., :end]).float()
        scores[..., start:].add_(later[: end - start, : end - start])
        output[..., start:end, :] = torch.matmul(scores.softmax(dim=-1).to(value.dtype), value[..., :end, :])
    return output.flatten(1, 2)


AttentionInterface.register(NAME, slot_attention)
AttentionMaskInterface.register(NAME, sdpa_mask)


def switch_for(model: PreTrainedModel) -> AttentionSwitch:
    """A context in which ``model`` uses ``slot_attention``.

    Raises:
        ModelError: the model's layers do not accept an attention function.
    """
    if not takes_attention(model):
        raise ModelError(
            f"{type(model).__name__}: its layers do not accept an attention function, which generation needs; set "
            "model.model_id to a model whose layers do (GPT-2, GPT-NeoX, Llama, Qwen and most later families)"
        )
    return AttentionSwitch(model, NAME)
