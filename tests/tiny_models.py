"""Tiny random models of several families; nothing is downloaded."""

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from transformers import PreTrainedModel

VOCABULARY = 40
SHAPES = {
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 96},
    "llama": {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 96,
    },
    "qwen3": {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 96,
        "tie_word_embeddings": True,
    },
}


def make_model(family: str, seed: int = 0) -> "PreTrainedModel":
    """A random model whose weights are large enough for every path through it to change the output."""
    # Imported here, because the process that distributes the tests to workers makes no model.
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(seed)
    no_dropout = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0} if family == "gpt2" else {}
    config = AutoConfig.for_model(
        family,
        vocab_size=VOCABULARY,
        initializer_range=0.2,
        bos_token_id=0,
        eos_token_id=0,
        **SHAPES[family],
        **no_dropout,
    )
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
