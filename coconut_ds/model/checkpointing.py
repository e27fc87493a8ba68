"""Activation checkpointing, layer by layer, of a latent loop.

transformers' own drops the key/value cache. Here a layer's keys and values leave it as results, so they stay in the
graph; of the rest only the layer's input is kept, and computed again when its gradient comes: about a third more work.
"""

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from coconut_ds.errors import ModelError
from coconut_ds.model.latent_attention import LatentCache
from coconut_ds.model.support import decoder_layers


def checkpoint_layers(model: PreTrainedModel) -> None:
    """Has each decoder layer of ``model`` forget its activations in passes over a ``LatentCache``.

    Raises:
        ModelError: its layers are not found.
    """
    layers = decoder_layers(model)
    if layers is None:
        raise ModelError(
            f"{type(model).__name__}: its layers are not found; set training.activation_checkpointing=false"
        )
    for layer in layers:
        layer.forward = _CheckpointedLayer(layer.forward, _layer_index(layer))


def _layer_index(layer: nn.Module) -> int:
    indices: list[Any] = [module.layer_idx for module in layer.modules() if hasattr(module, "layer_idx")]
    return int(indices[0])


class _CheckpointedLayer:
    """``layer.forward``, which keeps its input, keys and values alone."""

    def __init__(self, forward: Callable[..., Tensor], index: int) -> None:
        self._forward, self._index = forward, index
        # transformers looks at what a layer takes.
        self.__signature__ = inspect.signature(forward)

    def __call__(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        cache = next((one for one in (*args, *kwargs.values()) if isinstance(one, LatentCache)), None)
        if cache is None or not torch.is_grad_enabled():
            return self._forward(hidden_states, *args, **kwargs)
        layer = cache.latent_layers[self._index]

        def run(hidden: Tensor, *parts: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            own = cache.holding(self._index, parts)

            def swapped(one: Any) -> Any:
                return own if one is cache else one

            with cache.computing(bool(parts)):
                output = self._forward(
                    hidden, *map(swapped, args), **{key: swapped(one) for key, one in kwargs.items()}
                )
            new = own.latent_layers[self._index].new
            assert new is not None
            return output, *new

        output, keys, values = checkpoint(run, hidden_states, *layer.prefix, *layer.later, use_reentrant=False)
        layer.update(keys, values)
        return output
