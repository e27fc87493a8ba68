"""The latent loop: runs a causal language model over sequences that contain continuous thoughts.

A *thought* is the model's last hidden state at one position (after the final norm), used as the input embedding of the
next position instead of a token embedding (Coconut, arXiv 2412.06769, section 3). The loop first encodes the prefix,
that is all tokens before the first thought, in one forward pass; the state at the end of the prefix is the first
thought. It then runs one forward pass over a single position for each thought, which feeds the previous state in and
computes the next one. A last pass encodes all tokens after the thoughts. All passes share one key/value cache that
stays in the autograd graph (``passes.py``), so the loss reaches every thought, and no position is encoded twice: the
cost is that of one pass over T positions, plus the overhead of launching L small passes.

With ``method.thinking=jacobi`` or ``looped`` (``methods.parallel``) the one-position passes are replaced by a few
passes over all L positions at once. With a *feed* (``feed.py``), the input embedding is not the thought itself but what
the feed makes of it.

Shapes:
    B  rows (sequences) in the batch
    P  columns of the prefix
    L  columns of the steps; each holds a thought, or a token in rows that have fewer thoughts
    R  columns of the rest
    T  P + L + R (``collate.py`` draws the columns)
    Q  positions in one pass
    D  hidden size
    V  vocabulary size
    N  targets in the batch
"""

from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from transformers import Cache, PreTrainedModel

from coconut_ds.errors import ModelError
from coconut_ds.model.checkpointing import checkpoint_layers
from coconut_ds.model.collate import LatentInputs, Targets
from coconut_ds.model.feed import Feed
from coconut_ds.model.fused import PLAIN, Kernels, fuse_activations
from coconut_ds.model.head import vocabulary_product
from coconut_ds.model.last_layer import LastLayer
from coconut_ds.model.layer_states import LayerStates
from coconut_ds.model.liger import fuse_layers
from coconut_ds.model.loss import target_loss
from coconut_ds.model.passes import last_hidden_states, passes_of
from coconut_ds.model.step_columns import StepColumns
from coconut_ds.model.support import state_size
from coconut_ds.model.thought_noise import NoiseSizes, ThoughtNoise
from coconut_ds.model.value_directions import ValueDirections

Result = TypeVar("Result")


class LatentLoop(nn.Module):
    """Wraps a Hugging Face causal language model so that it can read and produce continuous thoughts.

    ``forward`` takes a function and calls it with this module. DeepSpeed's ZeRO hooks are attached to ``forward`` only,
    so training and generation both go through it: ``engine(latent_loss, inputs, targets)``.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        activation_checkpointing: bool = False,
        defer_gradients: bool | None = None,
        kernels: Kernels = PLAIN,
        auxiliary: Mapping[str, nn.Module] = MappingProxyType({}),
        feed: Feed | None = None,
    ) -> None:
        """Patches ``model`` in place: fused kernels, the shortened last layer, and optionally checkpointing.

        Args:
            model: the language model.
            activation_checkpointing: whether each layer drops its activations and recomputes them in the backward
                pass (see ``checkpointing.py``).
            defer_gradients: whether the gradient of each weight is summed over all passes in one product (see
                ``deferred.py``); None: on a CPU, where summing it pass by pass takes longer than the one-position
                passes themselves. Must be False under ZeRO-3, which releases the weights between passes.
            kernels: fused kernels beyond those that are always used (see ``fused.py``).
            auxiliary: what an objective trains beside the model (``objectives.base``).
            feed: what a thought goes through before it is fed back, on the device and in the type of the model. It is a
                submodule, so it is trained, sharded and resumed with the model. None: nothing, a thought is fed back as
                it is.

        Raises:
            ModelError: transformers' own gradient checkpointing is on, or the layers to checkpoint are not found.
        """
        super().__init__()
        self.model, self._defer_gradients, self._kernels = model, defer_gradients, kernels
        # None instead of ``nn.Identity``: for each module that is called, ZeRO-3 adds nodes to the autograd graph.
        self.feed = feed
        if any(getattr(module, "gradient_checkpointing", False) for module in model.modules()):
            # transformers' checkpointing silently disables the cache: thoughts would not attend to the question.
            raise ModelError("gradient checkpointing of transformers drops the key/value cache; switch it off")
        fuse_activations(model)
        if kernels.layers:
            fuse_layers(model)
        self.last_layer = LastLayer(model)
        self.value_directions: ValueDirections | None = None
        """Adds noise to values while samples are made and replayed; None: nothing does."""
        self.auxiliary = nn.ModuleDict(auxiliary)
        if activation_checkpointing:
            checkpoint_layers(model)

    def forward(self, task: Callable[..., Result], *arguments: Any) -> Result:
        """Returns ``task(self, *arguments)``."""
        return task(self, *arguments)

    @property
    def device(self) -> torch.device:
        """The model's device; inputs must be on it."""
        return self.model.device

    @property
    def width(self) -> int:
        """D, the size of a state that is fed back, and of an input embedding."""
        return state_size(self.model)

    @property
    def noise_sizes(self) -> NoiseSizes:
        """The sizes of the noise of a sample."""
        directions = self.value_directions
        return NoiseSizes(self.width, (0, 0) if directions is None else directions.shape)

    @property
    def vocabulary(self) -> int:
        """V, the number of logits for each position."""
        return int(self.model.config.get_text_config().vocab_size)

    @property
    def num_layers(self) -> int:
        """Number of layers that store keys and values."""
        return int(self.model.config.get_text_config().num_hidden_layers)

    @property
    def _is_fp32(self) -> bool:
        """Whether the model computes in fp32."""
        return self.model.dtype == torch.float32

    def embed(self, ids: Tensor) -> Tensor:
        """Input embeddings [..., D] of token ids [...]."""
        embedded: Tensor = self.model.get_input_embeddings()(ids)
        return embedded

    def head(self, states: Tensor) -> Tensor:
        """Logits [..., V] of hidden states [..., D], in fp32."""
        return vocabulary_product(self.model.get_output_embeddings(), states).float()

    def fed(self, states: Tensor) -> Tensor:
        """The input embeddings [..., D] that states [..., D] become when they are fed back."""
        return states if self.feed is None else self.feed(states)

    def cross_entropy(self, states: Tensor, targets: Targets) -> Tensor:
        """Weighted sum of the cross entropies of targets, which states [B, T, D] predict; a scalar in fp32."""
        return target_loss(self.head, self.vocabulary, states.flatten(0, 1)[targets.index], targets)

    def states(
        self,
        embeds: Tensor,
        cache: Cache,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        read: Tensor | None = None,
    ) -> Tensor:
        """Runs one forward pass, which appends Q positions to the cache.

        Args:
            embeds: [B, Q, D] input embeddings.
            cache: keys and values of earlier positions.
            attention_mask: see transformers.
            position_ids: see transformers.
            read: [K] distinct positions in the flattened [B·Q] whose states the caller uses; the states returned for
                all other positions are not valid. None: all are valid. See ``last_layer.py`` for what this saves.

        Returns:
            [B, Q, D] hidden states after the final norm.
        """
        with self.last_layer.only(read):
            return last_hidden_states(self.model, embeds, cache, attention_mask, position_ids)

    def encode(
        self,
        inputs: LatentInputs,
        all_states: bool = True,
        layers: LayerStates | None = None,
        rounds: list[Tensor] | None = None,
        noise: ThoughtNoise | None = None,
    ) -> Tensor:
        """Runs all passes over a batch. Returns the hidden states [B, T, D] of all positions, thoughts included.

        Args:
            inputs: the batch.
            all_states: False: a state within the prefix is valid only if it is the first thought or predicts a target
                (``LatentInputs.prefix_read``). That is all that the loss needs, and it is cheaper.
            layers: receives the states of all layers at the columns that it asks for.
            rounds: receives the states [B, L, D] of the step columns after each of the R rounds of ``thinking=looped``.
            noise: changes the vectors that thoughts feed back, for L thoughts or more, or the values.
        """
        reading = partial(self.last_layer.only, None if all_states else inputs.prefix_read)
        wanted = self.device.type == "cpu" if self._defer_gradients is None else self._defer_gradients
        defers = wanted and torch.is_grad_enabled()
        # ``prefix_read`` holds the end of each row. fp32 runs keep the attention of all columns, whose kernel rounds
        # otherwise than that of a few.
        ends = not all_states and len(inputs.prefix_read) == len(inputs.prefix_ids) and not self._is_fp32
        passes = passes_of(self.model, inputs, self.num_layers, reading, defers, self._kernels.attention, ends)
        if noise is not None and noise.codes is not None:
            assert self.value_directions is not None, "the loop has no noise on values"
            passes = self.value_directions.over(passes, noise.codes, inputs)
        if layers is not None:
            passes = layers.over(passes)
        prefix, steps, rest = self._embeddings(inputs)
        parts = [passes.prefix(prefix())]
        if inputs.step_ids.shape[1]:
            rows = torch.arange(len(inputs.prefix_last), device=inputs.prefix_last.device)
            state = parts[0][rows, inputs.prefix_last].unsqueeze(1)
            columns = StepColumns(inputs, passes, steps, rest, self.fed, self._is_fp32, noise)
            parts += columns.states(state, rounds)
        elif self.feed is not None and torch.is_grad_enabled():
            # ZeRO 1 and 2 expect a gradient of every parameter. Without thoughts, those of the feed are 0.
            parts[0] = parts[0] + 0 * self.feed(parts[0].new_zeros(1, self.width)).sum()
        return torch.cat(parts, dim=1)

    def _embeddings(self, inputs: LatentInputs) -> list[Callable[[], Tensor]]:
        """Functions that return the embeddings of prefix, steps and rest: [B, P, D], [B, L, D] and [B, R, D]."""
        parts = [inputs.prefix_ids, inputs.step_ids, inputs.rest_ids]
        if self._is_fp32:
            # Each of these look-ups makes a gradient as large as the embedding. One look-up would add them up in
            # another order, and the numbers of fp32 runs must not depend on the version of this code.
            return [partial(self.embed, ids) for ids in parts]
        flat = self.embed(torch.cat([ids.flatten() for ids in parts]))
        embedded = flat.split([ids.numel() for ids in parts])
        return [partial(each.unflatten, 0, ids.shape) for each, ids in zip(embedded, parts, strict=True)]


def latent_loss(loop: LatentLoop, inputs: LatentInputs, targets: Targets) -> Tensor:
    """Weighted sum of the cross entropies of all targets, a scalar in fp32.

    The language model head runs only on the N states that predict a target.
    """
    return loop.cross_entropy(loop.encode(inputs, all_states=False), targets)
