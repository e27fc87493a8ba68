"""Keeps the weights that a run started from, and puts them in the place of the trained ones for a while.

Only parameters that learn are kept; the others stay as they are. With adapters these are the adapters alone, which do
nothing at the start, so their start is the model without adapters. Under ZeRO-3 each rank keeps only its shards.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from coconut_ds.distributed.zero import is_sharded


class StartWeights:
    """The weights of parameters at the time when this object is made. All ranks must make the same calls."""

    def __init__(self, parameters: Iterable[nn.Parameter]) -> None:
        self._parameters = [parameter for parameter in parameters if parameter.requires_grad]
        self._others = [_held(parameter).detach().clone() for parameter in self._parameters]

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Within this context, the parameters have these weights. Nothing may learn, save or load there."""
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    def _exchange(self) -> None:
        """Exchanges the memory of the parameters and the memory of the kept weights, without copying."""
        for place, parameter in enumerate(self._parameters):
            any_parameter: Any = parameter
            if is_sharded(parameter) and any_parameter.ds_status.name == "AVAILABLE":
                # Whole weights are forgotten, so that they are gathered again from the shards.
                any_parameter.partition()
            held = _held(parameter)
            held.data, self._others[place] = self._others[place], held.data


def _held(parameter: Any) -> Tensor:
    """What this rank stores of a parameter: its shard under ZeRO-3, else all of it."""
    held: Tensor = parameter.ds_tensor if is_sharded(parameter) else parameter
    return held
