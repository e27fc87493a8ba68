"""What a model must be for the latent loop, and what its weights must be for the model."""

import inspect
import threading
from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from coconut_ds.errors import CheckpointError, ModelError

CONSTRUCTION = threading.RLock()
"""Held while transformers builds or loads a model: it replaces functions of its own and of torch meanwhile, for the
whole process, and two threads that do so at once leave models without tied weights."""

UNSUPPORTED_KEYS = ("final_logit_softcapping", "logit_scale", "logits_scaling")
"""Configuration keys of models whose logits are not the head applied to the last hidden state."""


def embedding_weight(module: nn.Module | None) -> Tensor:
    """The matrix [rows, D] of an embedding or a head."""
    weight = getattr(module, "weight", None)
    assert isinstance(weight, Tensor), "an embedding has a weight matrix"
    return weight


def check_supported(model: PreTrainedModel) -> None:
    """Refuses models whose logits are not ``head(last hidden state)``, which the latent loop relies on."""
    config = model.config.get_text_config()
    transformed = [key for key in UNSUPPORTED_KEYS if getattr(config, key, None) not in (None, 1, 1.0)]
    if transformed:
        raise ModelError(
            f"{type(model).__name__}: its logits are transformed ({', '.join(transformed)}), which the latent loop "
            "does not reproduce; set model.model_id to a model of another family"
        )
    if "past_key_values" not in inspect.signature(model.base_model.forward).parameters:
        raise ModelError(f"{type(model).__name__}: has no key/value cache, over which thoughts are passed on")
    window = _attention_window(config)
    if window is not None:
        raise ModelError(
            f"{type(model).__name__}: some layers see only the last {window or 'few'} columns, pads among them, so "
            "rows of different lengths would not be independent; set model.model_id to a model with full attention"
        )
    if not isinstance(model.get_output_embeddings(), nn.Module):
        raise ModelError(f"{type(model).__name__}: has no language model head")


def _attention_window(config: PreTrainedConfig) -> int | None:
    """Columns that the most short-sighted layer sees; 0 where it is not a number, None for full attention."""
    kinds = getattr(config, "layer_types", None)
    if kinds is not None and all(kind == "full_attention" for kind in kinds):
        return None
    local = "local" in (getattr(config, "attention_layers", None) or ())
    window = getattr(config, "window_size", None) if local else getattr(config, "sliding_window", None)
    if window is None and kinds is not None:
        return 0
    return int(window) if window is not None else None


def refuse_partial(where: object, missing: Iterable[Any], unexpected: Iterable[Any], mismatched: Iterable[Any]) -> None:
    """Weights fill a model wholly or not at all.

    Raises:
        CheckpointError: names the first keys that do not fit.
    """
    found = []
    for kind, keys in (("missing", missing), ("unexpected", unexpected), ("of another shape", mismatched)):
        names = [str(key[0] if isinstance(key, tuple) else key) for key in keys]
        if names:
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            found.append(f"{kind} {', '.join(sorted(names)[:3])}{more}")
    if found:
        raise CheckpointError(
            f"{where}: the weights do not fit the model ({'; '.join(found)}); set the model options that it was "
            "trained with"
        )


def decoder_layers(model: PreTrainedModel) -> nn.ModuleList | None:
    """The layers of a model, first to last; None: they are not found."""
    count = model.config.get_text_config().num_hidden_layers
    stacks = [
        stack for stack in model.base_model.children() if isinstance(stack, nn.ModuleList) and len(stack) == count
    ]
    return stacks[0] if len(stacks) == 1 else None


def context_length(model: PreTrainedModel) -> int | None:
    """Positions that the model knows; None where nothing limits them."""
    length = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    return int(length) if length is not None else None
