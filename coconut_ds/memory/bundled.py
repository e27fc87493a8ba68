"""Configurations of the models in ``config/model``, so that their memory can be predicted without a network.

The values are those of ``config.json`` in the models' repositories on the Hugging Face hub, as far as they affect the
number and the shape of the weights and activations.
"""

from typing import Any

from transformers import AutoConfig, PreTrainedConfig

from coconut_ds.model.backbone import architecture
from coconut_ds.settings import ModelConfig

LLAMA3: dict[str, Any] = {
    "model_type": "llama",
    "vocab_size": 128_256,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-5,
    "bos_token_id": 128_000,
    "eos_token_id": 128_001,
}
QWEN3: dict[str, Any] = {
    "model_type": "qwen3",
    "vocab_size": 151_936,
    "max_position_embeddings": 32_768,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "rms_norm_eps": 1e-6,
    "bos_token_id": 151_643,
    "eos_token_id": 151_643,
}
BUNDLED: dict[str, dict[str, Any]] = {
    "openai-community/gpt2": {"model_type": "gpt2"},
    "meta-llama/Llama-3.2-1B": {
        **LLAMA3,
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "head_dim": 64,
        "max_position_embeddings": 131_072,
        "tie_word_embeddings": True,
    },
    "meta-llama/Meta-Llama-3-8B": {
        **LLAMA3,
        "hidden_size": 4096,
        "intermediate_size": 14_336,
        "num_hidden_layers": 32,
        "max_position_embeddings": 8192,
        "tie_word_embeddings": False,
    },
    "Qwen/Qwen3-0.6B-Base": {
        **QWEN3,
        "hidden_size": 1024,
        "intermediate_size": 3072,
        "num_hidden_layers": 28,
        "num_attention_heads": 16,
        "tie_word_embeddings": True,
    },
    "Qwen/Qwen3-8B-Base": {
        **QWEN3,
        "hidden_size": 4096,
        "intermediate_size": 12_288,
        "num_hidden_layers": 36,
        "num_attention_heads": 32,
        "tie_word_embeddings": False,
    },
}
"""By name on the hub; keys that are missing have the defaults of transformers."""


def known_architecture(settings: ModelConfig) -> PreTrainedConfig:
    """The Hugging Face configuration that ``settings`` describe; it is downloaded only if it is not bundled.

    Raises:
        ModelError: see ``architecture``.
    """
    if settings.model_config_overrides or settings.model_id not in BUNDLED:
        return architecture(settings)
    return AutoConfig.for_model(**BUNDLED[settings.model_id])
