"""The trial pass: runs a model over two positions, to see how its layers work.

Some properties of a model are in no configuration: whether each layer looks up its attention function, whether
attention is causal, whether positions can be given, and whether the logits are the head applied to the last hidden
state. The pass runs once for each model, with an attention function of its own that notes how the layers call it.
"""

import inspect
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, DynamicCache, PreTrainedModel

from coconut_ds.distributed.zero import is_sharded
from coconut_ds.model.attention import AttentionSwitch, fused_attention

NAME = "trial_pass"
"""The name under which transformers knows ``_trial_attention``."""
ATTENTION_OPTIONS = ("softcap", "s_aux", "sinks", "position_bias", "indices", "block_indices")
"""Arguments of attention functions that change the result, and that this project's own functions do not have."""
TOLERANCE = 1e-2
"""Largest difference between two ways to compute a state or logits in fp32, relative to the largest value."""


def can_try(model: PreTrainedModel) -> bool:
    """Whether this process holds the values of all parameters, so that a trial pass is possible."""
    return not any(is_sharded(parameter) or parameter.is_meta for parameter in model.parameters())


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
    """Relative difference of the last hidden states from those of token ids, without cache and trial attention."""
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
            return "its states differ if embeddings and positions are given and a cache is used"
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
        except (TypeError, ValueError, RuntimeError, AttributeError, KeyError, IndexError) as error:
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
    # Token ids, since some models compute more from them than the embeddings. Not the kernel that the model was loaded
    # for, since flash attention would need a CUDA device.
    with AttentionSwitch(model, "eager"):
        plain = model.base_model(input_ids=ids, use_cache=False).last_hidden_state
        logits = model(input_ids=ids, use_cache=False).logits
    trial.logits_error = _relative(logits, head(plain))
    parameters = inspect.signature(model.base_model.forward).parameters.values()
    takes_keywords = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters)
    with AttentionSwitch(model, NAME):
        states = model.base_model(
            inputs_embeds=embeds,
            past_key_values=trial.cache,
            position_ids=torch.arange(2, device=model.device)[None],
            use_cache=True,
            **({"trial": trial} if takes_keywords else {}),
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
    return fused_attention(module, query, key, value, None, 0.0, scaling, is_causal=True), None


AttentionInterface.register(NAME, _trial_attention)
AttentionMaskInterface.register(NAME, lambda *arguments, **options: None)
