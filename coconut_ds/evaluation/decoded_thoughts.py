"""Thoughts through the language model head. A projection, not a meaning."""

from dataclasses import dataclass

import torch
from transformers import PreTrainedTokenizerBase

from coconut_ds.model.latent_loop import LatentLoop


@dataclass(frozen=True)
class DecodedThought:
    """The tokens nearest to one thought."""

    tokens: list[str]
    probabilities: list[float]


@torch.no_grad()
def decode_thoughts(
    loop: LatentLoop, tokenizer: PreTrainedTokenizerBase, thoughts: torch.Tensor, top_k: int = 5
) -> list[list[DecodedThought]]:
    """For thoughts [B, L, D] the top tokens of ``softmax(head(thought))`` (arXiv 2412.06769, figure 4)."""
    logits = loop.head(thoughts.to(loop.device, loop.model.dtype))
    values, ids = logits.softmax(dim=-1).topk(top_k, dim=-1)
    return [
        [
            DecodedThought([str(tokenizer.decode([token])) for token in row_ids], row_values)
            for row_ids, row_values in zip(ids[row].tolist(), values[row].tolist(), strict=True)
        ]
        for row in range(len(thoughts))
    ]
