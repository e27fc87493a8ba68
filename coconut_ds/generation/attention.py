"""Attention of the engine's passes, registered with transformers under a name of its own.

Passes over one position multiply each row's query with the cache as it lies, as two batched products: torch's fused
kernel for the CPU is made for many queries and takes three times as long there in bf16, and heads that share keys would
be copied apart. On the CPU in bf16 whole prompts go block by block, which is a third faster than the fused kernel. All
other passes take torch's fused kernel.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from coconut_ds.errors import ModelError
from coconut_ds.model.attention import AttentionSwitch, takes_attention

NAME = "thinking_engine"
BLOCK = 128
"""Queries that are multiplied at a time, in blocks."""


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
    """Output [n, Q, heads, E] for queries [n, heads, Q, E]; see transformers' ``AttentionInterface``."""
    if query.shape[2] > 1 and attention_mask is None and query.dtype == torch.bfloat16 and query.device.type == "cpu":
        return _causal_blocks(query, key, value, scaling).transpose(1, 2), None
    if query.shape[2] > 1 or attention_mask is None:
        output, _ = sdpa_attention_forward(module, query, key, value, attention_mask, dropout, scaling, **kwargs)
        return output, None
    rows, heads, _, size = query.shape
    shared = key.shape[1]
    scale = size**-0.5 if scaling is None else scaling
    asked = (query * scale).reshape(rows * shared, heads // shared, size)
    # Keys first: as a matrix times a vector it is three times as fast in bf16 as a vector times a matrix.
    scores = torch.bmm(key.flatten(0, 1), asked.transpose(1, 2)).transpose(1, 2).unflatten(0, (rows, shared))
    weights = scores.float().masked_fill(~attention_mask, float("-inf")).softmax(dim=-1)
    output = torch.bmm(weights.to(value.dtype).flatten(0, 1), value.flatten(0, 1))
    return output.view(rows, 1, heads, -1), None


def _causal_blocks(query: Tensor, key: Tensor, value: Tensor, scaling: float | None) -> Tensor:
    """[n, heads, T, E] attention of each position to itself and those before it; blocks leave out most of the rest."""
    rows, heads, length, size = query.shape
    shared = key.shape[1]
    query = (query * (size**-0.5 if scaling is None else scaling)).unflatten(1, (shared, heads // shared))
    key, value = key.unsqueeze(2).transpose(-1, -2), value.unsqueeze(2)
    output = value.new_empty(rows, shared, heads // shared, length, value.shape[-1])
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
    """``with switch_for(model):`` it attends as above.

    Raises:
        ModelError: the model's layers have an attention of their own.
    """
    if not takes_attention(model):
        raise ModelError(
            f"{type(model).__name__}: its layers do not take an attention function, which generation needs; set "
            "model.model_id to one whose layers do (GPT-2, GPT-NeoX, Llama, Qwen and most later ones)"
        )
    return AttentionSwitch(model, NAME)
