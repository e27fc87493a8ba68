"""Passes over whole prompts in which the state of one layer at one position is replaced, and states before the norm.

Layer 0 is the input of the first block (with the embedding of the position in models that add one), layer n the output
of block n, before any final norm.

Legend: ``N`` blocks, ``R`` rows, ``T`` positions, ``D`` hidden size.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from coconut_ds.errors import ModelError
from coconut_ds.model.latent_loop import LatentLoop
from coconut_ds.model.support import decoder_layers


@dataclass(frozen=True, eq=False)
class Replaced:
    """The state that is replaced in one row of a pass."""

    layer: int
    position: int
    state: Tensor
    """[D]"""


def raw_states(loop: LatentLoop, embeds: Tensor) -> Tensor:
    """[N + 1, T, D] the states of a sequence at every layer; fp32, on the CPU. ``embeds``: [1, T, D].

    Raises:
        ModelError: the model's blocks are not found.
    """
    found: dict[int, Tensor] = {}

    def note(layer: int, states: Tensor) -> None:
        found[layer] = states[0].float().cpu()

    with _seen(loop, note):
        loop.model.base_model(inputs_embeds=embeds, use_cache=False)
    return torch.stack([found[layer] for layer in sorted(found)])


def replaced_pass(loop: LatentLoop, embeds: Tensor, replaced: Sequence[Replaced]) -> Tensor:
    """[R, T, D] the states after the final norm of sequences ``embeds`` [R, T, D], with one state of each row replaced.

    Raises:
        ModelError: the model's blocks are not found.
    """

    def put(layer: int, states: Tensor) -> Tensor:
        rows = [row for row, one in enumerate(replaced) if one.layer == layer and one.position < states.shape[1]]
        if not rows:
            return states
        changed = states.clone()
        at = [replaced[row].position for row in rows]
        changed[rows, at] = torch.stack([replaced[row].state for row in rows]).to(states)
        return changed

    with _seen(loop, put):
        states: Tensor = loop.model.base_model(inputs_embeds=embeds, use_cache=False).last_hidden_state
    return states


@contextmanager
def _seen(loop: LatentLoop, change: Any) -> Iterator[None]:
    """Within this context, ``change(layer, states)`` is called in each pass; what it returns replaces the states."""
    blocks = decoder_layers(loop.model)
    if blocks is None:
        raise ModelError(f"{type(loop.model).__name__}: its blocks were not found, so their states cannot be replaced")

    def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if args:
            return (_changed(change, 0, args[0]), *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": _changed(change, 0, kwargs["hidden_states"])}

    def after(layer: int) -> Any:
        def hook(module: nn.Module, args: Any, output: Any) -> Any:
            if isinstance(output, tuple):
                return (_changed(change, layer, output[0]), *output[1:])
            return _changed(change, layer, output)

        return hook

    hooks = [blocks[0].register_forward_pre_hook(before, with_kwargs=True)]
    hooks += [block.register_forward_hook(after(number)) for number, block in enumerate(blocks, start=1)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _changed(change: Any, layer: int, states: Tensor) -> Tensor:
    made: Tensor | None = change(layer, states)
    return states if made is None else made
