"""Checks that the latent loop supports a model, and that weights fit it; access to a model's parts."""

import inspect
import threading
from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from coconut_ds.errors import CheckpointError, ModelError

CONSTRUCTION = threading.RLock()
"""Held while transformers builds or loads a model. During that time transformers replaces functions of its own and of
torch for the whole process; if two threads do so at once, the models end up without tied weights."""

UNSUPPORTED_KEYS = ("final_logit_softcapping", "logit_scale", "logits_scaling")
"""Configuration keys of models that cap or scale the output of their head."""


def embedding_weight(module: nn.Module | None) -> Tensor:
    """The weight [V, D] of an embedding or of a head."""
    weight = getattr(module, "weight", None)
    assert isinstance(weight, Tensor), "an embedding has a weight matrix"
    return weight


def check_supported(model: PreTrainedModel) -> None:
    """Refuses models that the latent loop cannot run correctly.

    Raises:
        ModelError: the logits are not ``head(last hidden state)``, there is no key/value cache or no language model
            head, or some layers have windowed attention.
    """
    config = model.config.get_text_config()
    transformed = [key for key in UNSUPPORTED_KEYS if getattr(config, key, None) not in (None, 1, 1.0)]
    if transformed:
        raise ModelError(
            f"{type(model).__name__}: it transforms its logits ({', '.join(transformed)}), which the latent loop does "
            "not support; set model.model_id to a model of another family"
        )
    if "past_key_values" not in inspect.signature(model.base_model.forward).parameters:
        raise ModelError(
            f"{type(model).__name__}: has no key/value cache, which the latent loop needs; set model.model_id to a "
            "model of another family"
        )
    window = _attention_window(config)
    if window is not None:
        raise ModelError(
            f"{type(model).__name__}: some layers attend only to the last {window or 'few'} columns, padding included, "
            "so a row's results would depend on the lengths of the other rows; set model.model_id to a model with full "
            "attention in every layer"
        )
    if not isinstance(model.get_output_embeddings(), nn.Module):
        raise ModelError(f"{type(model).__name__}: has no language model head; set model.model_id to a model with one")


def _attention_window(config: PreTrainedConfig) -> int | None:
    """The attention window, in columns; 0 if the configuration does not give its size, None for full attention."""
    kinds = getattr(config, "layer_types", None)
    if kinds is not None and all(kind == "full_attention" for kind in kinds):
        return None
    local = "local" in (getattr(config, "attention_layers", None) or ())
    window = getattr(config, "window_size", None) if local else getattr(config, "sliding_window", None)
    if window is None and kinds is not None:
        return 0
    return int(window) if window is not None else None


def refuse_partial(where: object, missing: Iterable[Any], unexpected: Iterable[Any], mismatched: Iterable[Any]) -> None:
    """Refuses weights that do not fit the model completely, since a partial load would go unnoticed.

    Args:
        where: where the weights come from, for the message.
        missing: names of weights that the model has and the source lacks.
        unexpected: names of weights that only the source has.
        mismatched: names, or tuples that begin with a name, of weights whose shapes differ.

    Raises:
        CheckpointError: any of the three is not empty; names up to three weights of each.
    """
    found = []
    for kind, keys in (("missing", missing), ("unexpected", unexpected), ("of another shape", mismatched)):
        names = [str(key[0] if isinstance(key, tuple) else key) for key in keys]
        if names:
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            found.append(f"{kind} {', '.join(sorted(names)[:3])}{more}")
    if found:
        raise CheckpointError(
            f"{where}: the weights do not fit the model ({'; '.join(found)}); set the model options that they were "
            "trained with"
        )


def decoder_layers(model: PreTrainedModel) -> nn.ModuleList | None:
    """The decoder layers of a model, first to last; None if they cannot be identified."""
    count = model.config.get_text_config().num_hidden_layers
    stacks = [
        stack for stack in model.base_model.children() if isinstance(stack, nn.ModuleList) and len(stack) == count
    ]
    return stacks[0] if len(stacks) == 1 else None


def context_length(model: PreTrainedModel) -> int | None:
    """The context length in positions; None if the configuration does not limit it."""
    length = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    return int(length) if length is not None else None
