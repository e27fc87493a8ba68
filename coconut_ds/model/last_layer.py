"""Computes the last layer only at the positions whose states are used.

In the pass over a question, only the state at its last position is used: it is the first thought. Later passes attend
to the other positions, but need only their keys and values, which the last layer computes before its attention. So the
modules after the attention (its output projection and the MLP), which treat each position independently, run only at
the positions that are read. For GPT-2 these modules do 9 of the 12 D² multiplications for each position of that layer,
which with six layers is an eighth of all computation on the prefix. States at the positions that are read do not
change; states at the other positions are not valid.

Shapes:
    B  rows (sequences) in the batch
    Q  positions in one pass
    D  hidden size
    K  positions that are read
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from coconut_ds.model.support import decoder_layers

POSITIONWISE = (nn.Linear, Conv1D, nn.Dropout, nn.Identity, nn.LayerNorm)
"""Modules that, like activation functions, treat each position independently."""
PROJECTIONS = ("c_proj", "o_proj", "out_proj", "dense")
"""Names that attention modules give to their output projection."""


class LastLayer:
    """Patches the last layer of a model so that it can be limited to some positions (``only``).

    Models whose layers are not found, or are built otherwise, are left as they are; they compute all positions.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self.read: Tensor | None = None
        layers = decoder_layers(model)
        for module in _modules_behind_attention(layers[-1]) if layers is not None else ():
            # If several loops wrap one model, only the last one made limits it; the others compute all positions.
            whole = module.forward.forward if isinstance(module.forward, _OnReadPositions) else module.forward
            module.forward = _OnReadPositions(whole, self)

    @contextmanager
    def only(self, read: Tensor | None) -> Iterator[None]:
        """Within this context, only the positions ``read`` get valid states.

        Args:
            read: [K] distinct positions in the flattened [B·Q]; None: all positions.
        """
        before, self.read = self.read, read
        try:
            yield
        finally:
            self.read = before


class _OnReadPositions:
    """Replaces a module's ``forward``: computes only the positions that are read, and returns zeros elsewhere."""

    def __init__(self, forward: Callable[..., Tensor], layer: LastLayer) -> None:
        self.forward, self._layer = forward, layer

    def __call__(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        read = self._layer.read
        # Further arguments (for example a residual to add) would not match the selected positions.
        takes_more = bool(args or kwargs)
        if read is None or takes_more or 2 * len(read) > hidden_states.shape[:-1].numel():
            return self.forward(hidden_states, *args, **kwargs)
        some = self.forward(hidden_states.flatten(0, -2)[read].unsqueeze(0))[0]
        whole = some.new_zeros(hidden_states.shape[:-1].numel(), some.shape[-1])
        return whole.index_copy_(0, read, some).unflatten(0, hidden_states.shape[:-1])


def _modules_behind_attention(layer: nn.Module) -> list[nn.Module]:
    """The output projection of the layer's attention and its MLP, where they are positionwise."""
    found = [getattr(layer, "mlp", None)]
    for name, child in layer.named_children():
        if "attn" in name or "attention" in name:
            found += [projection for part, projection in child.named_children() if part in PROJECTIONS]
    return [module for module in found if module is not None and _is_positionwise(module)]


def _is_positionwise(module: nn.Module) -> bool:
    leaves = [child for child in module.modules() if next(child.children(), None) is None]
    return all(isinstance(leaf, POSITIONWISE) or "activation" in type(leaf).__module__ for leaf in leaves)
