"""Which models the latent loop and the thinking engine can run correctly.

transformers has some two hundred families of causal language models, and not all work as this project assumes. Its
configuration rules some out before any weights are loaded. The others make a trial pass (``trial.py``), which shows
what no configuration says.
"""

import inspect
from collections.abc import Mapping
from typing import Any

import transformers
from torch import nn
from transformers import CONFIG_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING, PreTrainedConfig, PreTrainedModel

from coconut_ds.errors import ModelError
from coconut_ds.model.folder_files import quantization, quantized
from coconut_ds.model.support import FULL, WINDOWS, attention_window
from coconut_ds.model.trial import can_try, trial_of

SMALLEST_WINDOW = 16
"""Attention windows of fewer positions are refused: they leave no room for a question, thoughts and an answer."""
OUTPUT_KEYS = ("final_logit_softcapping", "logits_soft_cap", "logit_scale", "logits_scaling", "lm_head_multiplier")
"""Configuration keys of models that cap or scale the output of their head."""
ANOTHER = "choose a model of another family (GPT-2, GPT-NeoX, Llama, Qwen and most others)"


def check_model_type(where: object, config: Mapping[str, Any]) -> None:
    """Refuses a ``config.json`` of a type that the installed transformers does not know.

    Args:
        where: the folder, for the message.
        config: the content of ``config.json``.

    Raises:
        ModelError: the type is not known. Code in the folder (``auto_map``) is never run.
    """
    kind = config.get("model_type")
    if kind not in CONFIG_MAPPING:
        code = "; the folder brings its own code (auto_map), which is never run" if "auto_map" in config else ""
        raise ModelError(
            f"{where}: transformers {transformers.__version__} does not know the model type {kind!r}{code}; use a "
            "newer transformers or a model of another type"
        )


def check_config(config: PreTrainedConfig) -> None:
    """Refuses models that cannot be run, by their configuration, before weights are loaded.

    Raises:
        ModelError: see ``check_supported``; or the weights are quantized, or transformers has no causal language model
            for this configuration.
    """
    if method := quantization(config.to_dict()):
        raise ModelError(f"{config.model_type}: {quantized(method)}")
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise ModelError(f"{config.model_type}: transformers has no causal language model of this type; {ANOTHER}")
    family: Any = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    if getattr(config, "is_encoder_decoder", False):
        raise ModelError(f"{family.__name__}: is a part of an encoder-decoder model; {ANOTHER}")
    text = config.get_text_config()
    transformed = [key for key in OUTPUT_KEYS if getattr(text, key, None) not in (None, 1, 1.0)]
    if transformed:
        raise ModelError(
            f"{family.__name__}: it transforms its logits ({', '.join(transformed)}), which the latent loop does not "
            f"support; {ANOTHER}"
        )
    _check_layer_types(family.__name__, text)
    if not getattr(family, "_supports_attention_backend", False):
        raise ModelError(
            f"{family.__name__}: its layers do not accept an attention function, which generation needs; {ANOTHER}"
        )


def check_supported(model: PreTrainedModel) -> None:
    """Refuses models that the latent loop or the thinking engine cannot run correctly.

    Raises:
        ModelError: the logits are not ``head(last hidden state)``, there is no key/value cache, attention is not causal
            or not by an attention function, a window is too small, or positions or embeddings cannot be given.
    """
    name = type(model).__name__
    check_config(model.config)
    if model.base_model is model:
        raise ModelError(f"{name}: its layers cannot be run without its head; {ANOTHER}")
    parameters = inspect.signature(model.base_model.forward).parameters
    for part, what in (
        ("past_key_values", "has no key/value cache"),
        ("inputs_embeds", "takes no embeddings as input, so no thoughts"),
        ("position_ids", "takes no position ids, so that padding would change its results"),
    ):
        if part not in parameters:
            raise ModelError(f"{name}: {what}, which the latent loop needs; {ANOTHER}")
    head = model.get_output_embeddings()
    if not isinstance(head, nn.Module):
        raise ModelError(f"{name}: has no language model head; {ANOTHER}")
    if all(head is not child for child in model.children()):
        raise ModelError(f"{name}: its head is more than one matrix, which the latent loop does not support; {ANOTHER}")
    if can_try(model) and (fault := trial_of(model).fault(model)):
        raise ModelError(f"{name}: {fault}; {ANOTHER}")


def _check_layer_types(name: str, config: PreTrainedConfig) -> None:
    """Refuses layers without ordinary attention, and attention windows that are too small.

    A larger window limits the context length (``support.context_length``), within which it has no effect.
    """
    kinds = set(getattr(config, "layer_types", None) or ())
    if unknown := sorted(map(str, kinds - {FULL, *WINDOWS})):
        raise ModelError(
            f"{name}: has layers without ordinary attention ({', '.join(unknown)}), whose state the latent loop cannot "
            f"keep; {ANOTHER}"
        )
    window = attention_window(config)
    if window is not None and window < SMALLEST_WINDOW:
        raise ModelError(
            f"{name}: some layers attend only to the last {window or 'few'} positions, which leaves no room for a "
            f"question, thoughts and an answer (expected {SMALLEST_WINDOW} or more); {ANOTHER}"
        )
