"""Tiny models on the strict device."""

from typing import Any

import torch
from making_feeds import SPEC
from tiny_models import SHAPES, VOCABULARY
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from coconut_ds.model.feed import Feed, build_feed
from strict_device.registering import device


def make_model(
    family: str, dtype: torch.dtype = torch.float32, dropout: float = 0.1, layers: int = 1, **changes: Any
) -> PreTrainedModel:
    """A model on the strict device, with torch's fused attention. Call it within ``strict()``.

    Args:
        family: one of ``tiny_models.SHAPES``.
        dtype: the type of its weights.
        dropout: of every kind that the family has.
        layers: number of layers; each operation takes as long as one of thousands of numbers without the strict device.
        changes: further values of its configuration.
    """
    rates = ("resid_pdrop", "embd_pdrop", "attn_pdrop") if family == "gpt2" else ("attention_dropout",)
    depth = "n_layer" if family == "gpt2" else "num_hidden_layers"
    options = {**SHAPES[family], **dict.fromkeys(rates, dropout), depth: layers, **changes}
    config = AutoConfig.for_model(family, vocab_size=VOCABULARY, bos_token_id=0, eos_token_id=0, **options)
    # Made there, not moved there: a parameter cannot change to the class of the tensors there.
    with torch.device(device()):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation="sdpa")
    return model


def make_feed(dtype: torch.dtype = torch.float32) -> Feed:
    """A feed for thoughts of the models above, on the strict device."""
    with torch.device(device()):
        return build_feed(SPEC, 32, seed=0).to(dtype)
