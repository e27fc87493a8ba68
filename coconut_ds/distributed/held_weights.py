"""Weights of a ZeRO-3 engine that are gathered once and then stay whole until the optimizer step.

DeepSpeed gathers a weight before each use of its module and releases it afterwards. A latent loop uses every module in
each of its passes, so a weight would be gathered for the prefix, for each thought, for the rest and in the backward
pass. DeepSpeed's limits on live weights would avoid that only while each forward and backward pass calls the same
modules as the one before; a different number of thoughts, or a validation, breaks that. Moreover, in the backward pass
DeepSpeed does not release a module that was used more than once, so every weight ends up whole anyway.
"""

from collections.abc import Iterable, Iterator
from typing import Any

from torch import nn

from coconut_ds.distributed.zero import is_sharded

GROUP = 8_000_000
"""Largest number of elements of several weights that are gathered by one collective, through one buffer. A larger
weight is gathered alone, without a buffer."""


class HeldWeights:
    """Gathers all weights of a ZeRO-3 engine at once. All ranks must make the same calls.

    The weights are whole from ``gather`` until DeepSpeed divides them again, which it does in each optimizer step, and
    when it saves or loads its state. Gradients are reduced and divided as before.
    """

    def __init__(self, engine: Any) -> None:
        """Stops DeepSpeed from gathering and releasing the weights of each module.

        Args:
            engine: the DeepSpeed engine, with ZeRO stage 3.
        """
        module: nn.Module = engine.module
        self._parameters: list[Any] = [parameter for parameter in module.parameters() if is_sharded(parameter)]
        offload = engine.optimizer.parameter_offload
        # With every weight whole, these hooks would only cost time: they look through the list of all modules to be
        # called at each call of a module, and exchange that list between the ranks whenever it changes.
        for hook in (*offload.forward_hooks, offload.fwd_pre_hook):
            hook.remove()
        # The hooks for the backward pass stay, and do nothing. They put nodes into the autograd graph; without these,
        # some gradients would be summed in another order.
        offload.pre_sub_module_backward_function = offload.post_sub_module_backward_function = _do_nothing

    def gather(self) -> None:
        """Makes all weights whole. Does nothing if they are whole already. Must be called before the model computes."""
        missing = [parameter for parameter in self._parameters if parameter.ds_status.name == "NOT_AVAILABLE"]
        # All transfers are started before the first one is waited for.
        started = [group[0].all_gather_coalesced(group) for group in _groups(missing)]
        for transfer in started:
            transfer.wait()


def _do_nothing(module: nn.Module) -> None:
    pass


def _groups(parameters: Iterable[Any]) -> Iterator[list[Any]]:
    """Divides the parameters into groups of at most ``GROUP`` elements, in their order; larger ones are alone."""
    group: list[Any] = []
    size = 0
    for parameter in parameters:
        if group and size + parameter.ds_numel > GROUP:
            yield group
            group, size = [], 0
        group.append(parameter)
        size += parameter.ds_numel
    if group:
        yield group
