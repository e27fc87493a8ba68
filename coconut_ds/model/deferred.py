"""Defers the weight gradients of the latent loop: one product for each weight, over all passes after the prefix.

In a pass over one position, the gradient of each weight is a matrix as large as the weight, but of rank B at most (B:
rows of the batch). With L thoughts, autograd would write, read and add L + 1 matrices of that size to the gradient of
the prefix; on a CPU that takes longer than the passes themselves. Here the backward of each pass after the prefix only
stores the factors of its gradient: the inputs and the gradients of the outputs. Once all passes have stored theirs, one
product over all their positions is added to the gradient of the prefix (``_WeightGate``).

Shapes:
    n    positions of one pass, in all rows
    in   size of a layer's input
    out  size of a layer's output
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.overrides import TorchFunctionMode

from coconut_ds.distributed.zero import is_sharded

Stash = list[tuple[Tensor, Tensor]]
"""For each product with a weight after the prefix: its inputs [n, in] and the gradients of its outputs [n, out]."""


class DeferredWeights:
    """Defers the weight gradients of one batch.

    The pass over the prefix runs within ``with weights.prefix():``, each later pass within ``with weights.later():``.
    """

    def __init__(self) -> None:
        self._gated: dict[int, tuple[Tensor, Tensor | None, Stash]] = {}

    def prefix(self) -> TorchFunctionMode:
        """A context in which products with weights are ordinary, except that they read the weights through gates."""
        return _Products(self, later=False)

    def later(self) -> TorchFunctionMode:
        """A context in which the backward of each product with a weight stores its factors for the weight's gate."""
        return _Products(self, later=True)

    def gated(
        self, weight: nn.Parameter, bias: Tensor | None, is_transposed: bool
    ) -> tuple[Tensor, Tensor | None, Stash]:
        """The outputs of the gate for ``weight`` and ``bias``, and the stash that the gate reads."""
        key = id(weight)
        if key not in self._gated:
            # ZeRO-3 partitions a weight again after each pass, so the gate could not read it in the backward pass.
            assert not is_sharded(weight), "LatentLoop: weights are sharded; pass defer_gradients=False"
            stash: Stash = []
            self._gated[key] = (*_WeightGate.apply(weight, bias, stash, is_transposed), stash)
        return self._gated[key]


class _Products(TorchFunctionMode):
    """Intercepts the products with trained weights in ``nn.Linear`` and in GPT-2's ``Conv1D``."""

    def __init__(self, weights: DeferredWeights, later: bool) -> None:
        super().__init__()
        self._weights, self._later = weights, later

    def __torch_function__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is F.linear and _learns(args[1]) and not kwargs:
            inputs, weight, bias = (*args, None)[:3]
            return self._product(inputs, weight, bias, is_transposed=False)
        if func is torch.addmm and _learns(args[2]) and not kwargs:
            bias, inputs, weight = args
            return self._product(inputs, weight, bias, is_transposed=True)
        return func(*args, **(kwargs or {}))

    def _product(self, inputs: Tensor, weight: nn.Parameter, bias: Tensor | None, is_transposed: bool) -> Tensor:
        gated, gated_bias, stash = self._weights.gated(weight, bias, is_transposed)
        if self._later:
            product: Tensor = _DeferredProduct.apply(inputs, gated, gated_bias, stash, is_transposed)
            return product
        return F.linear(inputs, gated.t() if is_transposed else gated, gated_bias)


def _learns(weight: Any) -> bool:
    return isinstance(weight, nn.Parameter) and weight.requires_grad


class _WeightGate(torch.autograd.Function):
    """The identity on weight and bias; its backward adds the gradient of all deferred products in ``stash``.

    Autograd calls ``backward`` after the backward of every product that reads the outputs of this function.
    """

    @staticmethod
    def forward(
        ctx: Any, weight: Tensor, bias: Tensor | None, stash: Stash, is_transposed: bool
    ) -> tuple[Tensor, Tensor | None]:
        ctx.set_materialize_grads(False)
        ctx.stash, ctx.is_transposed = stash, is_transposed
        return weight.view_as(weight), None if bias is None else bias.view_as(bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_weight: Tensor | None, d_bias: Tensor | None) -> tuple[Tensor | None, ...]:
        if ctx.stash:
            inputs, d_outputs = (torch.cat(parts) for parts in zip(*ctx.stash, strict=True))
            ctx.stash.clear()
            left, right = (inputs, d_outputs) if ctx.is_transposed else (d_outputs, inputs)
            d_weight = left.t() @ right if d_weight is None else d_weight.addmm_(left.t(), right)
            if ctx.needs_input_grad[1]:
                own = d_outputs.sum(dim=0)
                d_bias = own if d_bias is None else d_bias + own
        return d_weight, d_bias, None, None


class _DeferredProduct(torch.autograd.Function):
    """A product whose backward leaves the gradients of weight and bias to the gate."""

    @staticmethod
    def forward(
        ctx: Any, inputs: Tensor, weight: Tensor, bias: Tensor | None, stash: Stash, is_transposed: bool
    ) -> Tensor:
        ctx.save_for_backward(inputs, weight)
        ctx.stash, ctx.is_transposed = stash, is_transposed
        if bias is None or inputs.dtype == torch.float32 or inputs.device.type != "cpu":
            return F.linear(inputs, weight.t() if is_transposed else weight, bias)
        # For a few rows in bf16, oneDNN is faster if it does not add the bias itself.
        product = inputs.flatten(0, -2) @ (weight if is_transposed else weight.t())
        return product.add_(bias).unflatten(0, inputs.shape[:-1])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_output: Tensor) -> tuple[Tensor | None, ...]:
        inputs, weight = ctx.saved_tensors
        ctx.stash.append((inputs.flatten(0, -2), d_output.flatten(0, -2)))
        return d_output @ (weight.t() if ctx.is_transposed else weight), None, None, None, None
