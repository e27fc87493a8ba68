"""The last layer, where only some positions are read.

Of the last layer's results in the pass over a question, one position feeds the first thought; all others give later
positions nothing but their keys and values. So the modules behind attention, which treat each position by itself, run
on the positions that are read alone. For GPT-2 those are 9 of the 12 D² operations a position of that layer: an eighth
of all operations on the prefix with six layers. Results are the same; at positions that are not read they are rubbish.

Legend: ``B`` rows, ``Q`` positions of a pass, ``D`` hidden size, ``K`` positions that are read.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from coconut_ds.model.support import decoder_layers

BY_POSITION = (nn.Linear, Conv1D, nn.Dropout, nn.Identity, nn.LayerNorm)
"""With activations, what modules may consist of that are run on some positions."""
PROJECTIONS = ("c_proj", "o_proj", "out_proj", "dense")
"""Names of an attention's last module."""


class LastLayer:
    """Has the last layer of a model run where it is read; models of other shapes stay as they are."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.read: Tensor | None = None
        layers = decoder_layers(model)
        for module in _modules_behind_attention(layers[-1]) if layers is not None else ():
            # Of several loops around one model the last one made has the say; passes of the others are whole.
            whole = module.forward.forward if isinstance(module.forward, _OnSome) else module.forward
            module.forward = _OnSome(whole, self)

    @contextmanager
    def only(self, read: Tensor | None) -> Iterator[None]:
        """Passes in here are read at ``read`` [K] of their B·Q positions, each named once; None: at all of them."""
        before, self.read = self.read, read
        try:
            yield
        finally:
            self.read = before


class _OnSome:
    """A module's ``forward``."""

    def __init__(self, forward: Callable[..., Tensor], layer: LastLayer) -> None:
        self.forward, self._layer = forward, layer

    def __call__(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        read = self._layer.read
        # More than states, such as what is to be added to the result: that has other positions.
        takes_more = bool(args or kwargs)
        if read is None or takes_more or 2 * len(read) > hidden_states.shape[:-1].numel():
            return self.forward(hidden_states, *args, **kwargs)
        some = self.forward(hidden_states.flatten(0, -2)[read].unsqueeze(0))[0]
        whole = some.new_zeros(hidden_states.shape[:-1].numel(), some.shape[-1])
        return whole.index_copy_(0, read, some).unflatten(0, hidden_states.shape[:-1])


def _modules_behind_attention(layer: nn.Module) -> list[nn.Module]:
    """The output projection of its attention, and its MLP."""
    found = [getattr(layer, "mlp", None)]
    for name, child in layer.named_children():
        if "attn" in name or "attention" in name:
            found += [projection for part, projection in child.named_children() if part in PROJECTIONS]
    return [module for module in found if module is not None and _is_by_position(module)]


def _is_by_position(module: nn.Module) -> bool:
    leaves = [one for one in module.modules() if next(one.children(), None) is None]
    return all(isinstance(leaf, BY_POSITION) or "activation" in type(leaf).__module__ for leaf in leaves)
