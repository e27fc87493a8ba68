"""Keeps the states of all layers at one column of each row while the latent loop encodes a batch.

Shapes:
    B  rows (sequences) in the batch
    Q  positions in one pass
    D  hidden size
    L  layers of the model
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Self

import torch
from torch import Tensor
from transformers import PreTrainedModel

from coconut_ds.errors import ModelError
from coconut_ds.model.passes import Passes
from coconut_ds.model.support import decoder_layers


@dataclass(frozen=True)
class ReadColumns:
    """The column of each row whose states are kept."""

    columns: Tensor
    """[B] columns of the collated batch."""
    first: int
    """The smallest of them. With ``last`` it tells, without reading a tensor, which passes contain none."""
    last: int
    """The largest of them."""

    @classmethod
    def of(cls, columns: Tensor, pinned: bool = False) -> Self:
        """The columns ``columns`` [B], in the memory of the host."""
        first, last = int(columns.min()), int(columns.max())
        return cls(columns.pin_memory() if pinned else columns, first, last)

    def to(self, device: torch.device) -> Self:
        """The same columns on ``device``; the host does not wait for the copy."""
        return replace(self, columns=self.columns.to(device, non_blocking=True))


class LayerStates:
    """Receives the states of one batch: the input of each layer, and the output of the final norm.

    The input of the first layer is the embedding, with that of the position where the model has such. The states must
    be among those that the caller of ``LatentLoop.encode`` asks for.
    """

    def __init__(self, model: PreTrainedModel, reads: ReadColumns, detached: bool = False) -> None:
        """
        Args:
            model: the model of the loop.
            reads: the columns to keep, on the device of the model.
            detached: whether no gradient flows through the kept states.

        Raises:
            ModelError: the layers of the model were not found.
        """
        layers = decoder_layers(model)
        if layers is None:
            raise ModelError(f"{type(model).__name__}: its decoder layers were not found, so their states are unknown")
        self._layers, self._reads, self._detached = layers, reads, detached
        self._kept: dict[int, Tensor] = {}

    @property
    def states(self) -> Tensor:
        """[L + 1, B, D] the kept states, once the whole batch has been encoded."""
        return torch.stack([self._kept[number] for number in range(len(self._layers) + 1)])

    def over(self, passes: Passes) -> Passes:
        """The same passes, from which this object receives the states."""
        return _ReadPasses(passes, self)

    def read(self, encode: Callable[[], Tensor], start: int, count: int) -> Tensor:
        """Returns ``encode()``, a pass over ``count`` columns from ``start`` on, and keeps the states of these columns.

        A later pass over the same columns replaces them.
        """
        if start > self._reads.last or start + count <= self._reads.first:
            return encode()
        place = self._reads.columns - start
        keep = partial(self._keep, place.clamp(0, count - 1), (place >= 0) & (place < count))
        hooks = [
            layer.register_forward_pre_hook(partial(_give_input, partial(keep, number)), with_kwargs=True)
            for number, layer in enumerate(self._layers)
        ]
        try:
            states = encode()
        finally:
            for hook in hooks:
                hook.remove()
        keep(len(self._layers), states)
        return states

    def _keep(self, place: Tensor, is_within: Tensor, number: int, states: Tensor) -> None:
        """Keeps states [B, Q, D] at the positions ``place`` [B] of the rows that are ``is_within`` [B]."""
        states = states.detach() if self._detached else states
        found = states[torch.arange(len(place), device=place.device), place]
        if number in self._kept:
            found = torch.where(is_within[:, None], found, self._kept[number])
        # In the first pass, a row that is not within keeps the state of another column until its own column is read.
        self._kept[number] = found


class _ReadPasses:
    """Passes whose states a ``LayerStates`` receives."""

    def __init__(self, passes: Passes, layers: LayerStates) -> None:
        self._passes, self._layers = passes, layers

    def prefix(self, embeds: Tensor) -> Tensor:
        """See ``Passes``."""
        return self._layers.read(partial(self._passes.prefix, embeds), 0, embeds.shape[1])

    def later(self, embeds: Tensor, start: int, again: bool = False) -> Tensor:
        """See ``Passes``."""
        return self._layers.read(partial(self._passes.later, embeds, start, again), start, embeds.shape[1])


def _give_input(
    keep: Callable[[Tensor], None], layer: Any, arguments: tuple[Any, ...], options: dict[str, Any]
) -> None:
    """A hook before a layer, which gives its input to ``keep``."""
    keep(arguments[0] if arguments else options["hidden_states"])
