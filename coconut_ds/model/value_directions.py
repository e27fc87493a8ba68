"""Noise on the value projections of all layers, along their singular vectors (singular value perturbation).

The value projection of a layer is a matrix W = U diag(s) Vᵀ. With the code g of a sample it becomes

    x W + α ((x U) ∘ s ∘ g) Vᵀ

that is, each singular value s_i becomes s_i (1 + α g_i). A sample has one standard normal code for each layer, which is
held over its prompt and its thoughts; from the first token after the thoughts on, values are computed without noise.
U, s and V are constants for the gradient. They are computed from the weights from time to time (``renew``).

Source: the public code of "Singular Value Perturbation" (jihwan1205/Singular-Value-Perturbation).

Shapes:
    B  rows in a pass
    Q  positions in a pass
    L  layers
    I  size of a layer's input
    O  size of its values
    r  the smaller one of I and O
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from coconut_ds.errors import ModelError
from coconut_ds.model.checkpointing import Restore, restore_when_recomputing
from coconut_ds.model.collate import LatentInputs
from coconut_ds.model.passes import Passes
from coconut_ds.model.support import decoder_layers


class ValueProjection(NamedTuple):
    """Where a layer computes its values."""

    module: nn.Module
    """A linear layer whose last O outputs are the values."""
    size: int
    """O."""


class Basis(NamedTuple):
    """The singular value decomposition of one projection."""

    left: Tensor
    """[I, r] U."""
    values: Tensor
    """[r] s."""
    right: Tensor
    """[r, O] Vᵀ."""


class ValueDirections:
    """Adds noise to the values of a model within ``adding``, and leaves it as it is elsewhere."""

    def __init__(self, model: PreTrainedModel, scale: float) -> None:
        """Registers a hook with the value projection of each layer.

        Args:
            model: the language model.
            scale: α.

        Raises:
            ModelError: see ``value_projections``.
        """
        self._width = int(model.config.get_text_config().hidden_size)
        self._projections, self._scale = value_projections(model), scale
        self._bases: list[Basis] = []
        self._noise: tuple[Tensor, Tensor] | None = None
        self.weights: list[Tensor] = []
        """[I, O] the weights that the singular vectors are those of, on the CPU; empty before the first ``renew``."""
        for number, projection in enumerate(self._projections):
            projection.module.register_forward_hook(partial(self._add, number))
        restore_when_recomputing(model, self._present)

    @property
    def shape(self) -> tuple[int, int]:
        """(L, r), the shape of a sample's code."""
        return len(self._projections), min(self._width, self._projections[0].size)

    @torch.no_grad()
    def renew(self, loop: nn.Module) -> None:
        """Computes the singular vectors of the present weights, adapters included.

        All ranks call it through the engine.

        Args:
            loop: runs on the device and in the type of the model.
        """
        parameter: Any = next(loop.parameters())
        dtype, device = parameter.dtype, parameter.device
        identity = torch.eye(self._width, dtype=dtype, device=device)
        found = []
        for projection in self._projections:
            # A product with the identity works for all kinds of layers, with adapters and with sharded weights.
            with_bias = projection.module(torch.cat([identity, identity[:1] * 0]).unsqueeze(0))[
                0, :, -projection.size :
            ]
            found.append((with_bias[:-1].float() - with_bias[-1:].float()).cpu())
        self.use(found, device, dtype)

    def use(self, weights: Sequence[Tensor], device: torch.device, dtype: torch.dtype) -> None:
        """Uses the singular vectors of weights [I, O], as ``weights`` returned them."""
        self.weights, self._bases = list(weights), []
        for weight in self.weights:
            parts = torch.linalg.svd(weight.to(device), full_matrices=False)
            self._bases.append(Basis(*(each.to(dtype) for each in parts)))

    @contextmanager
    def adding(self, codes: Tensor, where: Tensor) -> Iterator[None]:
        """Within this context, one pass has noise.

        Args:
            codes: [B, L, r] in fp32, the code of each row.
            where: [B, Q] or [B, 1] bool, the positions with noise.
        """
        assert self._bases, "the singular vectors were not computed"
        before, self._noise = self._noise, (codes, where)
        try:
            yield
        finally:
            self._noise = before

    def _present(self) -> Restore:
        """What makes a context with the noise of the present pass, for when a layer is recomputed."""
        return nullcontext if self._noise is None else partial(self.adding, *self._noise)

    def over(self, passes: Passes, codes: Tensor, inputs: LatentInputs) -> Passes:
        """The passes of a batch with noise on prefix and thoughts. The prefix of each row ends with its first thought.

        Args:
            passes: the passes without noise.
            codes: [B, L, r] the code of each row.
            inputs: the batch.
        """
        return _NoisyPasses(passes, self, codes, inputs)

    def _add(self, number: int, module: nn.Module, arguments: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
        """The hook of layer ``number``: returns its output with noise on the values."""
        if self._noise is None:
            return None
        (codes, where), basis = self._noise, self._bases[number]
        factors = self._scale * basis.values * codes[:, number].to(basis.values.dtype)
        noise = ((arguments[0] @ basis.left) * factors.unsqueeze(1)) @ basis.right
        noise = torch.where(where.unsqueeze(-1), noise, 0)
        rest = output.shape[-1] - noise.shape[-1]
        values = output[..., rest:] + noise
        return values if not rest else torch.cat([output[..., :rest], values], dim=-1)


class _NoisyPasses:
    """Passes with noise on the values of prefix and thoughts."""

    def __init__(self, passes: Passes, directions: ValueDirections, codes: Tensor, inputs: LatentInputs) -> None:
        self._passes, self._directions, self._codes = passes, directions, codes
        self._thoughts, self._width = inputs.is_thought, inputs.prefix_ids.shape[1]

    def prefix(self, embeds: Tensor) -> Tensor:
        """See ``Passes``."""
        with self._directions.adding(self._codes, self._thoughts.new_ones(1, 1)):
            return self._passes.prefix(embeds)

    def later(self, embeds: Tensor, start: int, again: bool = False) -> Tensor:
        """See ``Passes``."""
        first, count = start - self._width, embeds.shape[1]
        where = self._thoughts[:, first : first + count]
        if not where.shape[1]:
            return self._passes.later(embeds, start, again)
        where = torch.nn.functional.pad(where, (0, count - where.shape[1]))
        with self._directions.adding(self._codes, where):
            return self._passes.later(embeds, start, again)


def value_projections(model: PreTrainedModel) -> list[ValueProjection]:
    """The value projection of each layer.

    Raises:
        ModelError: a layer has none that is known here.
    """
    layers, config = decoder_layers(model), model.config.get_text_config()
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    size = int(heads * (getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads))
    # ``c_attn`` (GPT-2) and ``qkv_proj`` (Phi-3) compute queries, keys and values together, in this order.
    names = ("v_proj", "c_attn", "qkv_proj")
    found = []
    for layer in layers or ():
        own = [module for name, module in layer.named_modules() if name.rsplit(".", 1)[-1] in names]
        if len(own) == 1:
            found.append(ValueProjection(own[0], size))
    if layers is None or len(found) != len(layers):
        raise ModelError(
            f"objective.grpo.exploration=svp: {type(model).__name__} has no value projection that is known here "
            f"({', '.join(names)}); set objective.grpo.exploration=gaussian"
        )
    return found
