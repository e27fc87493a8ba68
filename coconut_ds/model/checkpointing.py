"""Activation checkpointing for the latent loop, one decoder layer at a time.

transformers' own checkpointing disables the key/value cache, which the loop needs. Here each checkpointed layer returns
its keys and values as outputs, so they stay in the autograd graph. Of everything else only the layer's input is stored;
the activations are recomputed in the backward pass, which costs about a third more computation.
"""

import inspect
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from coconut_ds.errors import ModelError
from coconut_ds.model.latent_attention import LatentCache
from coconut_ds.model.support import decoder_layers

Restore = Callable[[], AbstractContextManager[None]]
"""Makes a context."""


def checkpoint_layers(model: PreTrainedModel) -> None:
    """Makes each decoder layer of ``model`` drop its activations in passes over a ``LatentCache``, in place.

    Raises:
        ModelError: the decoder layers were not found.
    """
    layers = decoder_layers(model)
    if layers is None:
        raise ModelError(
            f"{type(model).__name__}: its decoder layers were not found; set training.activation_checkpointing=false"
        )
    for layer in layers:
        layer.forward = _CheckpointedLayer(layer.forward, _layer_index(layer))


def restore_when_recomputing(model: PreTrainedModel, state: Callable[[], Restore]) -> None:
    """Makes the checkpointed layers of ``model``, if it has any, recompute in the context of the forward pass.

    Args:
        model: the language model.
        state: called in each forward pass of a layer; what it returns makes the context for computing this pass again.
    """
    for layer in decoder_layers(model) or ():
        if isinstance(layer.forward, _CheckpointedLayer):
            layer.forward.state = state


def _layer_index(layer: nn.Module) -> int:
    indices: list[Any] = [module.layer_idx for module in layer.modules() if hasattr(module, "layer_idx")]
    return int(indices[0])


class _CheckpointedLayer:
    """Replaces ``layer.forward``: stores only the layer's input, keys and values for the backward pass."""

    def __init__(self, forward: Callable[..., Tensor], index: int) -> None:
        self._forward, self._index = forward, index
        self.state: Callable[[], Restore] = lambda: nullcontext
        """See ``restore_when_recomputing``."""
        # transformers inspects the parameters of a layer's ``forward``.
        self.__signature__ = inspect.signature(forward)

    def __call__(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        cache = next((value for value in (*args, *kwargs.values()) if isinstance(value, LatentCache)), None)
        if cache is None or not torch.is_grad_enabled():
            return self._forward(hidden_states, *args, **kwargs)
        layer, restored = cache.latent_layers[self._index], self.state()

        def run(hidden: Tensor, *parts: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            # Keys and values enter as arguments and leave as results, so that autograd sees them; ``run`` itself must
            # not change the cache, since the backward pass calls it a second time.
            own = cache.with_layer(self._index, parts)

            def swapped(value: Any) -> Any:
                return own if value is cache else value

            with cache.pass_context(bool(parts)), restored():
                output = self._forward(
                    hidden, *map(swapped, args), **{key: swapped(value) for key, value in kwargs.items()}
                )
            new = own.latent_layers[self._index].new
            assert new is not None
            return output, *new

        output, keys, values = checkpoint(run, hidden_states, *layer.prefix, *layer.later, use_reentrant=False)
        layer.update(keys, values)
        return output
