"""Which models the latent loop and the thinking engine can run correctly.

transformers has some two hundred families of causal language models, and not all work as this project assumes. Its
configuration rules some out before any weights are loaded. The others make a *trial pass* over two positions, which
shows what no configuration says: whether each layer looks up its attention function, whether attention is causal, and
whether the logits are the head applied to the last hidden state.

Shapes:
    D  hidden size
    V  vocabulary size
"""

import inspect
from collections.abc import Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

import torch
import transformers
from torch import Tensor, nn
from transformers import (
    CONFIG_MAPPING,
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AttentionInterface,
    AttentionMaskInterface,
    DynamicCache,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from coconut_ds.distributed.zero import is_sharded
from coconut_ds.errors import ModelError
from coconut_ds.model.attention import AttentionSwitch
from coconut_ds.model.folder_files import quantization, quantized
from coconut_ds.model.support import FULL, WINDOWS, attention_window

NAME = "trial_pass"
"""The name under which transformers knows ``_trial_attention``."""
SMALLEST_WINDOW = 16
"""Attention windows of fewer positions are refused: they leave no room for a question, thoughts and an answer."""
OUTPUT_KEYS = ("final_logit_softcapping", "logits_soft_cap", "logit_scale", "logits_scaling", "lm_head_multiplier")
"""Configuration keys of models that cap or scale the output of their head."""
ATTENTION_OPTIONS = ("softcap", "s_aux", "sinks", "position_bias", "indices", "block_indices")
"""Arguments of attention functions that change the result, and that this project's own functions do not have."""
TOLERANCE = 1e-2
"""Largest difference between two ways to compute a state or logits in fp32, relative to the largest value."""
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
    if not _can_run(model):
        return
    if fault := trial_of(model).fault(model):
        raise ModelError(f"{name}: {fault}; {ANOTHER}")


def hides_cache(model: PreTrainedModel) -> bool:
    """Whether the model's layers are known to change what they read from the cache, or to drop keyword arguments.

    Then an attention function does not see the cache as it is, which ``latent_attention.py`` needs.
    """
    trial = _TRIALS.get(model)
    return trial is not None and not trial.shows_cache


@dataclass
class Trial:
    """What a trial pass over two positions showed."""

    layers: list[int | None] = field(default_factory=list)
    """Index of the layer in each call of the attention function."""
    is_causal: bool = True
    """Whether every call was causal."""
    cache: DynamicCache = field(default_factory=DynamicCache)
    """The cache of the pass."""
    shows_cache: bool = True
    """Whether every call received this object as a keyword argument, and the keys and values of the cache unchanged."""
    own_mask: bool = False
    """Whether a call received a mask that transformers did not make."""
    options: set[str] = field(default_factory=set)
    """Those of ``ATTENTION_OPTIONS`` that were given."""
    error: str = ""
    """The exception that the pass raised, if any."""
    state_error: float = 0.0
    """Relative difference of the last hidden states from those without cache, positions and trial attention."""
    logits_error: float = 0.0
    """Relative difference of the logits from the head applied to the last hidden states."""

    def holds(self, index: int | None, key: Tensor, value: Tensor) -> bool:
        """Whether keys and values are those in the cache of a layer."""
        if index is None or index >= len(self.cache.layers):
            return False
        layer: Any = self.cache.layers[index]
        return torch.equal(layer.keys, key) and torch.equal(layer.values, value)

    def fault(self, model: PreTrainedModel) -> str | None:
        """Why the model cannot be run; None if it can."""
        if self.error:
            return f"it fails on embeddings with a key/value cache ({self.error})"
        expected = list(range(model.config.get_text_config().num_hidden_layers))
        if self.layers != expected:
            return "its layers do not each call an attention function once, which generation needs"
        if not self.is_causal:
            return "its attention is not causal"
        if self.options:
            return f"its attention has {', '.join(sorted(self.options))}, which the latent loop does not support"
        if self.own_mask:
            return "it makes attention masks of its own, which the latent loop does not support"
        if self.state_error > TOLERANCE:
            return "its states differ if positions are given and a cache is used"
        if self.logits_error > TOLERANCE:
            return "it transforms its logits, which the latent loop does not support"
        return None


_TRIALS: WeakKeyDictionary[PreTrainedModel, Trial] = WeakKeyDictionary()
_CURRENT: ContextVar[Trial] = ContextVar("trial")


def trial_of(model: PreTrainedModel) -> Trial:
    """The result of the model's trial pass, which is made once for each model."""
    if model not in _TRIALS:
        trial, was_training = Trial(), model.training
        model.eval()
        token = _CURRENT.set(trial)
        try:
            _run_trial(model, trial)
        except (
            TypeError,
            ValueError,
            RuntimeError,
            AttributeError,
            KeyError,
            IndexError,
            NotImplementedError,
        ) as error:
            trial.error = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
        finally:
            trial.cache = DynamicCache()
            _CURRENT.reset(token)
            model.train(was_training)
        _TRIALS[model] = trial
    return _TRIALS[model]


@torch.no_grad()
def _run_trial(model: PreTrainedModel, trial: Trial) -> None:
    """Runs two positions with and without the trial attention, and fills in ``trial``."""
    ids = torch.tensor([[0, 1]], device=model.device)
    embeds = model.get_input_embeddings()(ids)
    head = model.get_output_embeddings()
    assert isinstance(head, nn.Module)
    # Not the kernel that the model was loaded for: flash attention would need a CUDA device.
    with AttentionSwitch(model, "eager"):
        plain = model.base_model(inputs_embeds=embeds, use_cache=False).last_hidden_state
        logits = model(inputs_embeds=embeds, use_cache=False).logits
    trial.logits_error = _relative(logits, head(plain))
    with AttentionSwitch(model, NAME):
        states = model.base_model(
            inputs_embeds=embeds,
            past_key_values=trial.cache,
            position_ids=torch.arange(2, device=model.device)[None],
            use_cache=True,
            trial=trial,
        ).last_hidden_state
    trial.state_error = _relative(states, plain)


def _relative(value: Tensor, expected: Tensor) -> float:
    if value.shape != expected.shape:
        return float("inf")
    if value.dtype != torch.float32:
        # Rounding alone may exceed the tolerance.
        return 0.0
    scale = expected.float().abs().max().clamp(min=1e-9)
    # nan, which random weights may produce, shows nothing.
    return float(((value.float() - expected.float()).abs().max() / scale).nan_to_num(0.0))


def _trial_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    trial: Trial | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Causal attention that notes how a layer called it; for transformers' ``AttentionInterface``."""
    note = _CURRENT.get()
    index = getattr(module, "layer_idx", None)
    note.layers.append(index)
    note.is_causal &= bool(getattr(module, "is_causal", True) if is_causal is None else is_causal)
    note.shows_cache &= trial is note and note.holds(index, key, value)
    note.own_mask |= attention_mask is not None
    note.options |= {name for name in ATTENTION_OPTIONS if kwargs.get(name) is not None}
    output, _ = sdpa_attention_forward(module, query, key, value, None, 0.0, scaling, is_causal=True)
    return output, None


AttentionInterface.register(NAME, _trial_attention)
AttentionMaskInterface.register(NAME, lambda *arguments, **options: None)


def _can_run(model: PreTrainedModel) -> bool:
    """Whether this process holds the values of all parameters."""
    return not any(is_sharded(parameter) or parameter.is_meta for parameter in model.parameters())


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
